"""One progress bar for the whole run, with the time left."""

from time import perf_counter
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm


class RunProgress(ProgressBar):
    """A bar over all steps of the run, refreshed every `refresh` steps, and sooner where a step takes long.

    Not after every step: counting steps is cheap, but reading a metric makes the host wait for it.
    """

    def __init__(self, refresh: int = 10, desc: str = "training") -> None:
        super().__init__()
        self.refresh, self.desc, self.enabled = refresh, desc, True
        self.bar: tqdm | None = None
        self.shown = 0.0

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        tqdm.write(" ".join(map(str, args)))

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        total = int(trainer.estimated_stepping_batches)
        off = not (self.enabled and trainer.is_global_zero)
        self.bar = tqdm(
            total=total, initial=trainer.global_step, desc=self.desc, unit="step", disable=off, dynamic_ncols=True
        )

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.bar is None:
            return
        slow = perf_counter() - self.shown > 1
        if slow or trainer.global_step % self.refresh == 0 or trainer.is_last_batch:
            self.bar.update(trainer.global_step - self.bar.n)
            self.shown = perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.bar is not None:
            shown = {name.split("/")[-1]: _short(value) for name, value in trainer.progress_bar_metrics.items()}
            self.bar.set_postfix(epoch=trainer.current_epoch + 1, **shown)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
