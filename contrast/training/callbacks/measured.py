"""What a metric measured during training decides: which checkpoints are kept, and when the run ends.

Each metric is read at the end of the epochs in which it was measured.
"""

import json
import math
from abc import ABC, abstractmethod
from pathlib import Path
from statistics import median
from typing import Literal

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn

from contrast.atomic import rewrite
from contrast.errors import InputError
from contrast.run.folder import METRICS, PRUNED, read_metrics
from contrast.run.metrics import FILE, read_rows

KNN = "online/knn_top1"


class AtMeasurement(pl.Callback, ABC):
    """Calls `act` at the end of each epoch in which `metric` was measured: "online/knn_top1", "train/loss", ..."""

    def __init__(self, active: bool, metric: str = KNN, mode: Literal["max", "min"] = "max") -> None:
        if mode not in ("max", "min"):
            raise InputError(f"the best value is the max or the min, not {mode!r}")
        self.metric, self.sign, self.active = metric, 1 if mode == "max" else -1, active
        self.measured = False

    @abstractmethod
    def act(self, trainer: pl.Trainer, value: float) -> None:
        """Called with `value`, of which a higher one is better in any mode."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.callback_metrics.pop(self.metric, None)  # Lightning keeps it until it is measured again

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        value = trainer.callback_metrics.get(self.metric)
        if value is not None and self.active:
            self.measured = True
            # the first rank's value on all of them: rounding must not make ranks decide differently
            self.act(trainer, self.sign * trainer.strategy.broadcast(float(value)))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.active and not self.measured:
            rank_zero_warn(f"{self.metric} was not measured, and {type(self).__name__} depends on it")


class Best(AtMeasurement):
    """Keeps the checkpoints of the `top_k` best measurements: `checkpoints/best_00010.ckpt`, after 10 epochs; 0: none.

    `checkpoints/best.json` has the metric of each, the best one first. Of equal ones the earlier is better.
    """

    def __init__(self, top_k: int = 0, metric: str = KNN, mode: Literal["max", "min"] = "max") -> None:
        super().__init__(top_k > 0, metric, mode)
        if top_k < 0:
            raise InputError(f"the checkpoints of the {top_k} best measurements: 0 means none")
        self.top_k = top_k
        self.values: dict[str, float] = {}  # of each file, the best one first

    def act(self, trainer: pl.Trainer, value: float) -> None:
        if len(self.values) >= self.top_k and value <= min(self.values.values()):
            return
        folder = Path(trainer.default_root_dir) / "checkpoints"
        name = f"best_{trainer.current_epoch + 1:05d}.ckpt"
        ranked = sorted(({**self.values, name: value}).items(), key=lambda item: (-item[1], item[0]))
        self.values = dict(ranked[: self.top_k])
        trainer.save_checkpoint(folder / name)
        if trainer.is_global_zero:
            kept = {name: self.sign * value for name, value in self.values.items()}
            rewrite(folder / "best.json", json.dumps({"metric": self.metric, "checkpoints": kept}, indent=2) + "\n")
            for path in folder.glob("best_*.ckpt"):
                if path.name not in self.values:
                    path.unlink()

    def state_dict(self) -> dict[str, dict[str, float]]:
        return {"values": self.values}

    def load_state_dict(self, state_dict: dict[str, dict[str, float]]) -> None:
        self.values = state_dict["values"]


class EarlyStopping(AtMeasurement):
    """Ends the run when `patience` measurements in a row are not better by `min_delta` than the best; None: never."""

    def __init__(
        self,
        patience: int | None = None,
        min_delta: float = 0.0,
        metric: str = KNN,
        mode: Literal["max", "min"] = "max",
    ) -> None:
        super().__init__(patience is not None, metric, mode)
        if (patience is not None and patience < 1) or min_delta < 0:
            raise InputError(f"early stopping needs patience >= 1 and min_delta >= 0: {patience}, {min_delta}")
        self.patience, self.min_delta = patience, min_delta
        self.best, self.waited = -float("inf"), 0

    def act(self, trainer: pl.Trainer, value: float) -> None:
        is_better = value > self.best + self.min_delta
        self.best, self.waited = (value, 0) if is_better else (self.best, self.waited + 1)
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = True
            if trainer.is_global_zero:
                best = f"{self.metric} was best at {self.sign * self.best:.4f}, {self.waited} measurements ago"
                print(f"step {trainer.global_step}: the run ends early, for {best}", flush=True)

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.best, self.waited = state_dict["best"], int(state_dict["waited"])


class Prune(AtMeasurement):
    """Ends a job of a sweep that is behind the others: worse than their median at the same epoch.

    `startup` jobs have to be complete before, as for Optuna's median pruner; None: no job is ended. The other jobs are
    known by the logs in their folders, so that this works with every launcher and sweeper. A job that is ended is
    evaluated like any other, but its metrics say that it was pruned: it is no result of the sweep, no other job is
    compared with it, and Optuna's sampler is told so.
    """

    def __init__(self, startup: int | None = None, metric: str = KNN, mode: Literal["max", "min"] = "max") -> None:
        super().__init__(startup is not None, metric, mode)
        self.startup = startup
        self.metrics: dict[str, float] = {}  # of a job that was pruned

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        own = Path(trainer.default_root_dir)
        if self.active and not own.name.isdigit():
            raise InputError(f"callbacks.prune compares the jobs of a sweep (-m), and {own} is a single run")

    def act(self, trainer: pl.Trainer, value: float) -> None:
        own, epoch = Path(trainer.default_root_dir), trainer.current_epoch
        others = [values for folder in own.parent.iterdir() if folder != own and (values := self.values(folder))]
        reached = [values[epoch] for values in others if epoch in values]
        behind = len(others) >= max(1, self.startup or 0) and bool(reached) and not value >= median(reached)
        if trainer.strategy.broadcast(behind):
            trainer.should_stop = True
            self.metrics = {PRUNED: epoch + 1}
            if trainer.is_global_zero:
                value *= self.sign
                print(f"epoch {epoch + 1}: {self.metric} is {value:.4f}, worse than the median: the job ends")

    def values(self, folder: Path) -> dict[int, float]:
        """The metric by epoch of a job that is complete and was not pruned, a higher one better; empty for others."""
        is_complete = (folder / METRICS).is_file() and (folder / FILE).is_file() and PRUNED not in read_metrics(folder)
        rows = [row for row in read_rows(folder / FILE) if self.metric in row] if is_complete else []
        return {int(row["epoch"]): self.sign * row[self.metric] for row in rows if math.isfinite(row[self.metric])}
