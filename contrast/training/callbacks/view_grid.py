"""A picture of the augmented views, once, at the start: the first thing to look at when a run learns nothing."""

from pathlib import Path
from typing import cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities.types import STEP_OUTPUT

from contrast.data.images.image_set import Batch
from contrast.module import Contrastive
from contrast.views.grid import save_grid


class ViewGrid(pl.Callback):
    """Writes `views.png` of the first batch's first images to the run folder, and to W&B where it is a logger."""

    def __init__(self, run_dir: Path, images: int = 8) -> None:
        self.file, self.images = run_dir / "views.png", images

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Batch, batch_idx: int
    ) -> None:
        model = cast(Contrastive, pl_module)
        if model.batch_number != 1 or not trainer.is_global_zero:
            return
        pixels = batch.pixels[: self.images]
        save_grid(self.file, pixels, model.views(pixels, model.uniforms(len(batch.pixels))[:, : len(pixels)]))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("views", [str(self.file)])
