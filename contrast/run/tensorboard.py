"""TensorBoard, an optional extra, inside the run folder."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger

from contrast.errors import InputError


def tensorboard_logger(run_dir: str | os.PathLike[str], **unused: Any) -> TensorBoardLogger:
    """Lightning's logger, writing to `<run_dir>/tensorboard`; what other loggers ask for (name, group) is unused.

    Raises:
        InputError: the package is not installed.
    """
    if find_spec("tensorboard") is None:
        raise InputError("logger=tensorboard needs the package tensorboard: pip install 'contrast[tensorboard]'")
    return TensorBoardLogger(save_dir=str(Path(run_dir).absolute()), name="tensorboard", version="")
