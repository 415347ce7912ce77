"""One progress bar for the whole run, with the time left."""

import math

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.utilities.types import STEP_OUTPUT
from tqdm import tqdm

from contrast.data.images.image_set import Batch
from contrast.data.loader import Span


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

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Batch | Span,
        batch_idx: int,
    ) -> None:
        self.train_progress_bar.update(trainer.global_step - self.train_progress_bar.n)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, int | str | float | dict]:
        shown = {name.split("/")[-1]: _short(value) for name, value in trainer.progress_bar_metrics.items()}
        return {"epoch": trainer.current_epoch + 1, **shown}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.train_progress_bar.close()


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
