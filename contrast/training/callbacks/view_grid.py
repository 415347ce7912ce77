"""A picture of the augmented views, once, at the start: the first thing to check when a run learns nothing."""

from pathlib import Path
from typing import cast

import pytorch_lightning as pl
import torch

from contrast.data.loader import Batches
from contrast.module import Contrastive
from contrast.rng import generator
from contrast.run.loggers import WandbLog
from contrast.views.grid import save_grid


class ViewGrid(pl.Callback):
    """Writes `views.png` of the first batch's first images to the run folder, and to W&B where it is a logger.

    batches  those of the run, of all ranks together
    """

    def __init__(self, run_dir: Path, batches: Batches, images: int = 8) -> None:
        self.file, self.batches, self.images = run_dir / "views.png", batches, images

    @torch.no_grad()
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        model, batches = cast(Contrastive, pl_module), self.batches
        if model.batch_number > 0 or not trainer.is_global_zero:
            return
        rows = batches.rows(batches.order(epoch=0), position=0)[: self.images]
        pixels = batches.images.take(rows).pixels.to(model.device)
        uniforms = model.views.draw(batches.batch_size, generator(model.seed, 1))[:, : len(rows)]  # of batch 1
        save_grid(self.file, pixels, model.views(pixels, uniforms.to(model.device)))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLog):
                logger.log_image("views", [str(self.file)])
