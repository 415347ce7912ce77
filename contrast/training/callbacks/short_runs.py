"""Rows in the log of runs that are shorter than the interval between two rows."""

import math

import pytorch_lightning as pl


class LogShortRuns(pl.Callback):
    """Shortens the interval of logging to an epoch, or to the run where it has fewer steps, so that a row is logged."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)  # of an epoch
        if trainer.max_steps > 0:
            steps = min(steps, trainer.max_steps)
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, max(1, steps))  # type: ignore[attr-defined]
