"""Jobs that run at the same time on one machine take one GPU each, the one that the fewest others use."""

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path

from contrast.run.lock import InUse, locked

_held = ExitStack()  # locks of this process, until it ends: CUDA keeps the GPU that a process's first job has chosen
_chosen: list[str] = []


def visible_gpus() -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names; without it all of the machine."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [each.strip() for each in named.split(",") if each.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def take_one(gpus: Sequence[str]) -> None:
    """Restricts this process to one of the `gpus`, through CUDA_VISIBLE_DEVICES; does nothing for fewer than two.

    Each place on a GPU has a lock file in the machine's temporary folder. A lock ends with its process.
    """
    if not _chosen and len(gpus) > 1:
        folder = Path(tempfile.gettempdir()) / f"contrast_gpus_{os.getuid() if hasattr(os, 'getuid') else 'all'}"
        for place, gpu in ((place, gpu) for place in count() for gpu in gpus):
            (folder / f"{gpu}_{place}").mkdir(parents=True, exist_ok=True)
            with suppress(InUse):  # another job has this place
                _held.enter_context(locked(folder / f"{gpu}_{place}"))
                _chosen.append(gpu)
                break
    if _chosen:
        os.environ["CUDA_VISIBLE_DEVICES"] = _chosen[0]
