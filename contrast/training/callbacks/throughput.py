"""Images or words per second of the training loop, evaluations left out."""

from collections.abc import Callable
from time import perf_counter
from typing import Any, cast

import pytorch_lightning as pl
from torch import Tensor

from contrast.module import Contrastive
from contrast.words.base import TextModel


class Throughput(pl.Callback):
    """Logs `train/<unit>_per_second` over the steps since the last row of the log, and has `metrics` of the whole run.

    unit   what is counted, "images" or "words"
    count  how many there are in a batch of this rank

    The clock stops from the end of an epoch's last batch to the start of the next one's first, where probes run.
    No device is synchronised: the host runs at most a few steps ahead, and the error is that of one log interval.
    """

    def __init__(self, unit: str, count: Callable[[Any], int]) -> None:
        self.unit, self.count = unit, count
        self.total, self.seconds = 0.0, 0.0
        self.since_total, self.since_seconds = 0, 0.0  # since the last row
        self.started: float | None = None
        self.loss: Tensor | None = None  # of the last batch, divided by the number of batches in a step
        self.batches = 1  # in a step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.started is None:
            self.started = perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self.started is not None
        now = perf_counter()
        self.since_seconds += now - self.started
        self.since_total += self.count(batch) * trainer.world_size
        self.started = now
        self.loss, self.batches = outputs["loss"], trainer.accumulate_grad_batches
        if cast(Contrastive | TextModel, pl_module).logged:
            rate = self.since_total / self.since_seconds
            pl_module.log(f"train/{self.unit}_per_second", rate, prog_bar=True)
            self._add()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._add()
        self.started = None

    def _add(self) -> None:
        self.total += self.since_total
        self.seconds += self.since_seconds
        self.since_total, self.since_seconds = 0, 0.0

    def metrics(self) -> dict[str, float]:
        """Seconds of training and the rate over the whole run, interruptions left out; the loss of the last batch."""
        rate = self.total / self.seconds if self.seconds else 0.0
        metrics = {"seconds": self.seconds, f"{self.unit}_per_second": rate}
        return metrics if self.loss is None else metrics | {"loss": float(self.loss) * self.batches}

    def state_dict(self) -> dict[str, float]:
        return {self.unit: self.total + self.since_total, "seconds": self.seconds + self.since_seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.total, self.seconds = state_dict[self.unit], state_dict["seconds"]
