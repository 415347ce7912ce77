"""Checkpoints that a crash cannot harm, and when they are written: by epochs, by steps, and at a signal."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException

from contrast.atomic import WRITING, replacing
from contrast.errors import InputError
from contrast.run.disk import warn_of_little_room
from contrast.run.folder import resume_command
from contrast.run.loggers import WandbLog
from contrast.run.metrics import MetricsLog
from contrast.run.whole import check_whole, newest


class AtomicCheckpointIO(TorchCheckpointIO):
    """A plugin for `Trainer(plugins=[...])`: a path holds a whole checkpoint at any moment, the old or the new.

    Local folders only, one writing process per folder. What a killed process left behind is removed by the next save.
    Reading is torch's default, which runs no code from the file.

    needed  names without which a file is no checkpoint
    """

    def __init__(self, needed: Sequence[str] = ()) -> None:
        super().__init__()
        self.needed = needed

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., object] | None = None, weights_only: bool | None = None
    ) -> dict[str, object]:
        """What `save_checkpoint` wrote; InputError for a damaged file, which names the newest one that is whole."""
        try:
            check_whole(Path(path))
            saved = super().load_checkpoint(path, map_location, weights_only)
            _ = [saved[name] for name in self.needed]  # KeyError if one is not there
            return saved
        except Exception as error:  # damaged bytes can raise nearly any exception of pickle, zipfile or torch
            whole = newest(Path(path).parents[1], but=Path(path))
            instead = f"{resume_command(whole[0])} goes on from step {whole[1]}" if whole else "there is no other one"
            raise InputError(f"{path} is damaged or no checkpoint ({type(error).__name__}): {instead}") from error

    def save_checkpoint(self, checkpoint: dict[str, object], path: str | Path, storage_options: object = None) -> None:
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO writes local files and takes no storage_options")
        path = Path(path).absolute()
        for stray in path.parent.glob(f"{WRITING}*"):
            stray.unlink()
        with replacing(path) as temporary:
            torch.save(checkpoint, temporary)


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt` and, every `every_n_epochs` epochs (0: never), `epoch_00010.ckpt` (after 10 epochs).

    `last.ckpt` is refreshed after every `last_every_n_epochs` epochs and at the end of the run, each `every_n_steps`
    optimiser steps (0: never) and, in a run of one process, at the step at which SIGTERM, Ctrl-C or SIGHUP arrived (see
    `Signals`). Lightning's ModelCheckpoint saves on any exception or on none: it would put the weights of a NaN
    step, or of a step that Ctrl-C cut in half, in the place of the last good ones.

    The file also holds the state of torch's global generators on every rank. It is restored when training starts, so
    that dropout in a resumed run draws what it would have drawn without the interruption. Rows of a `MetricsLog` that
    will be logged again are marked as void.
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
        if every_n_steps:  # a hook only then, since Lightning calls it after every batch
            self.on_train_batch_end = self._save_within_epoch  # type: ignore[assignment,method-assign]
        self.last_every_n_epochs = last_every_n_epochs
        self._saved_step = -1
        self._generators: list[dict[str, torch.Tensor]] = []  # of each rank, from the checkpoint

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            tensors = [*pl_module.state_dict().values(), *pl_module.parameters(), *pl_module.parameters()]
            # with two running averages, as Adam has them
            warn_of_little_room(self.folder, sum(each.numel() * each.element_size() for each in tensors))
        for logger in trainer.loggers:
            if isinstance(logger, MetricsLog | WandbLog):
                logger.resume_at(trainer.global_step)
        if trainer.global_rank < len(self._generators):
            state = self._generators[trainer.global_rank]
            torch.set_rng_state(state["cpu"])
            if "cuda" in state and pl_module.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda"], pl_module.device)
        self._generators = []

    def _save_within_epoch(self, trainer: pl.Trainer, *unused: object) -> None:
        # Not after the last batch of an epoch: a run resumed there would skip the hooks at the epoch's end. There,
        # `on_train_epoch_end` writes the checkpoint.
        if trainer.global_step % self.every_n_steps == 0 and not trainer.is_last_batch:
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
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, object]
    ) -> None:
        state = {"cpu": torch.get_rng_state()}
        if pl_module.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(pl_module.device)
        states = [state] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, state)
        checkpoint["generators"] = states

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, object]
    ) -> None:
        self._generators = cast(list[dict[str, torch.Tensor]], checkpoint.get("generators", []))

    def _save_last(self, trainer: pl.Trainer) -> None:
        if trainer.global_step != self._saved_step:
            trainer.save_checkpoint(self.folder / "last.ckpt")
            self._saved_step = trainer.global_step
