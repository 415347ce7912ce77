"""Warns of a collapse, in which a method without negatives gives all images the same projection."""

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn


class WarnOfCollapse(pl.Callback):
    """Warns once, at the end of an epoch, when the effective rank of the projections is below `min_rank`.

    The rank is 1 if all projections are equal (`contrast.evaluation.geometry.effective_rank`).
    """

    def __init__(self, min_rank: float = 1.5) -> None:
        self.min_rank, self.warned = min_rank, False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.warned:
            return
        rank = trainer.callback_metrics.get("train/rank_projection")
        if rank is not None and rank < self.min_rank:
            self.warned = True
            rank_zero_warn(
                f"step {trainer.global_step}: the projections collapse, with an effective rank of {float(rank):.2f} "
                f"(train/rank_projection, 1 when all are equal). Batch norm at the end of the projection head "
                "(++projector.last_norm=true) or a lower optimizer.lr often help"
            )
