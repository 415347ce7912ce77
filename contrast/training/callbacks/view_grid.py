"""A picture of the augmented views, once, at the start: the first thing to look at when a run learns nothing."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from contrast.views.grid import save_grid


class ViewGrid(pl.Callback):
    """Writes `views.png` of the first batch's first images to the run folder, and to W&B where it is a logger."""

    def __init__(self, run_dir: Path, images: int = 8) -> None:
        self.file, self.images = run_dir / "views.png", images

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.batch_number != 1 or not trainer.is_global_zero:
            return
        pixels = batch.pixels[: self.images]
        uniforms = pl_module.uniforms(len(batch.pixels))[:, : len(pixels)]
        save_grid(self.file, pixels, pl_module.views(pixels, uniforms))
        for logger in trainer.loggers:
            if isinstance(logger, pl.loggers.WandbLogger):
                logger.log_image("views", [str(self.file)])
