"""Checkpoints that a crash cannot harm: written beside their place, then renamed into it."""

from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from contrast.atomic import WRITING, replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """A plugin for `Trainer(plugins=[...])`: a path holds a whole checkpoint at any moment, the old or the new.

    Local folders only, one writing process per folder. What a killed process left behind is removed by the next
    save. Reading is `torch.load(weights_only=True)`, which runs no code from the file, unless asked otherwise.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO writes local files and takes no storage_options")
        path = Path(path).absolute()
        for stray in path.parent.glob(f"{WRITING}*"):
            stray.unlink()
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, loc: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return super().load_checkpoint(path, map_location, weights_only=weights_only is not False)
