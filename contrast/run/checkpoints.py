"""When checkpoints are written: after every epoch, every so many steps, and when the job is told to end."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException

from contrast.errors import InputError
from contrast.run.csv_log import CSVLog


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt` and, every `every_n_epochs` epochs (0: never), `epoch_00010.ckpt` (after 10 epochs).

    `last.ckpt` is refreshed after every `last_every_n_epochs` epochs and at the end of the run, each `every_n_steps`
    optimiser steps (0: never) and, in a run of one process, at the step at which SIGTERM arrived; with several, SIGTERM
    ends them at once. Lightning's ModelCheckpoint saves on any exception or on none: it would put the weights of a NaN
    step, or of a step that Ctrl-C cut in half, in the place of the last good ones.

    The file also holds the global generators of torch on every rank, restored when training starts, so that a
    resumed dropout draws what the uninterrupted one would have; and each `CSVLog` forgets the rows that come again.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        every_n_epochs: int = 10,
        every_n_steps: int = 0,
        last_every_n_epochs: int = 1,
    ) -> None:
        if every_n_epochs < 0 or every_n_steps < 0:
            raise InputError(f"checkpoints every {every_n_epochs} epochs and {every_n_steps} steps: 0 means never")
        if last_every_n_epochs < 1:
            raise InputError(f"last.ckpt is refreshed every so many epochs, at least 1, not {last_every_n_epochs}")
        self.folder = Path(folder).absolute()
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.last_every_n_epochs = last_every_n_epochs
        self._saved_step = -1
        self._generators: list[dict[str, torch.Tensor]] = []  # of each rank, from the checkpoint

    @property
    def last(self) -> Path:
        return self.folder / "last.ckpt"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_step = trainer.global_step
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            # Lightning's handler broadcasts from within the signal and deadlocks with a collective under way.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for logger in trainer.loggers:
            if isinstance(logger, CSVLog):
                logger.resume_at(trainer.global_step)
        if trainer.global_rank < len(self._generators):
            state = self._generators[trainer.global_rank]
            torch.set_rng_state(state["cpu"])
            if "cuda" in state and pl_module.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda"], pl_module.device)
        self._generators = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # After the last batch of an epoch a resumed run would skip the hooks at its end: they come first, then we.
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0 and not trainer.is_last_batch:
            self._save_last(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        if self.every_n_epochs and epochs % self.every_n_epochs == 0:
            trainer.save_checkpoint(self.folder / f"epoch_{epochs:05d}.ckpt")
        if epochs % self.last_every_n_epochs == 0:
            self._save_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save_last(trainer)  # a run may end by its steps or its time, in the middle of `last_every_n_epochs`

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # SIGTERMException is raised between two batches, when weights, optimiser and loops agree with each other,
        # unless gradients are half accumulated: those are in no checkpoint.
        complete = (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if isinstance(exception, SIGTERMException) and complete:
            self._save_last(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        state = {"cpu": torch.get_rng_state()}
        if pl_module.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(pl_module.device)
        states: list[Any] = [state] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, state)
        checkpoint["generators"] = states

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._generators = checkpoint.get("generators", [])

    def _save_last(self, trainer: pl.Trainer) -> None:
        if trainer.global_step != self._saved_step:
            trainer.save_checkpoint(self.last)
            self._saved_step = trainer.global_step
