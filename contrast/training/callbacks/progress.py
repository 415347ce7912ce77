"""The progress bar of a run, with the time left, and how many images or words it trains on in a second."""

import math
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar
from torch import Tensor
from tqdm import tqdm

from contrast.module import Contrastive
from contrast.words.base import TextModel


class RunProgress(TQDMProgressBar):
    """Lightning's progress bar, over all steps of the run instead of those of an epoch.

    The metrics after the bar change at the end of an epoch only, because reading one makes the host wait for it.
    """

    def __init__(self, description: str = "training") -> None:
        super().__init__()
        self.description = description
        self.train_progress_bar = tqdm(disable=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        self.train_progress_bar = tqdm(
            total=None if math.isinf(steps) else int(steps),
            initial=trainer.global_step,
            desc=self.description,
            unit="step",
            disable=self.is_disabled,
            dynamic_ncols=True,
            mininterval=1.0,  # seconds: a log that is a file gets no line for every step
        )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing: Lightning's own bar would start again."""

    def on_train_batch_end(self, trainer: pl.Trainer, *unused: object) -> None:
        self.train_progress_bar.update(trainer.global_step - self.train_progress_bar.n)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, int | str | float | dict]:
        shown = {name.split("/")[-1]: _short(value) for name, value in trainer.progress_bar_metrics.items()}
        return {"epoch": trainer.current_epoch + 1, **shown}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.train_progress_bar.close()


class Throughput(RunProgress):
    """A progress bar that logs `train/<unit>_per_second` since the last row of the log, and has `metrics` of the run.

    unit   what is counted, "images" or "words"
    count  how many there are in a batch, on all ranks

    The clock stops between the last batch of an epoch and the start of the next epoch, where probes run. No device is
    synchronised: the host runs at most a few steps ahead, and the error is that of one log interval.

    The interval of the log is shortened to an epoch, or to the run where it has fewer steps, so that a row is logged.
    """

    def __init__(self, unit: str, count: Callable[..., int]) -> None:
        super().__init__()
        self.unit, self.count = unit, count
        self.total, self.seconds = 0, 0.0  # of the run
        self.row_total, self.row_seconds = 0, 0.0  # of the run until the last row
        self.started = 0.0
        self.loss: Tensor | None = None  # of the last batch, divided by the number of batches in a step
        self.batches = 1  # in a step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.started = perf_counter()  # of a run that continues within an epoch, whose start has no hook
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)  # of an epoch
        if trainer.max_steps > 0:
            steps = min(steps, trainer.max_steps)
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, max(1, steps))  # type: ignore[attr-defined]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = perf_counter()

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Mapping[str, Tensor], *batch: object
    ) -> None:
        now = perf_counter()
        self.seconds += now - self.started
        self.total += self.count(batch[0])
        self.started = now
        self.loss, self.batches = outputs["loss"], trainer.accumulate_grad_batches
        if cast(Contrastive | TextModel, pl_module).logged:
            rate = (self.total - self.row_total) / (self.seconds - self.row_seconds)
            pl_module.log(f"train/{self.unit}_per_second", rate, prog_bar=True)
            self.row_total, self.row_seconds = self.total, self.seconds
        super().on_train_batch_end(trainer)

    def metrics(self) -> dict[str, float]:
        """Seconds of training and the rate over the whole run, interruptions left out; the loss of the last batch."""
        rate = self.total / self.seconds if self.seconds else 0.0
        metrics = {"seconds": self.seconds, f"{self.unit}_per_second": rate}
        return metrics if self.loss is None else metrics | {"loss": float(self.loss) * self.batches}

    def state_dict(self) -> dict[str, float]:
        return {self.unit: self.total, "seconds": self.seconds}

    def load_state_dict(self, state_dict: Mapping[str, float]) -> None:
        self.total, self.seconds = self.row_total, self.row_seconds = int(state_dict[self.unit]), state_dict["seconds"]


def throughput_of(trainer: pl.Trainer) -> Throughput:
    """The one callback that counts seconds of training."""
    (throughput,) = (each for each in trainer.callbacks if isinstance(each, Throughput))  # type: ignore[attr-defined]
    return throughput


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
