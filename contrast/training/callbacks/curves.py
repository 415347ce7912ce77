"""The picture of the curves while a run goes on."""

from pathlib import Path
from time import perf_counter

import pytorch_lightning as pl

from contrast.run.curves import save_curves

EVERY = 60.0  # seconds at least between two pictures
SHARE = 0.01  # of the time, which drawing may take at most


class RefreshCurves(pl.Callback):
    """Draws `curves.png` again every minute, or less often where drawing takes more than 1 % of the time."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.due = run_dir, perf_counter() + EVERY

    def on_train_batch_end(self, trainer: pl.Trainer, *unused: object) -> None:
        start = perf_counter()
        if start >= self.due and trainer.is_global_zero:
            save_curves(self.run_dir)
            end = perf_counter()
            self.due = end + max(EVERY, (end - start) / SHARE)
