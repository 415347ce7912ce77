"""The training batches of a run under Lightning, resumable at every step."""

from typing import Any

import pytorch_lightning as pl

from contrast.data.images.image_set import ImageFiles, Images
from contrast.data.loader import Batches


class ResumableData(pl.LightningDataModule):
    """A loader with a position, an iterable with `state_dict()` and `load_state_dict()`, which `loader` makes.

    The position in the data is saved here. Lightning saves that of a loader too, but loads it only in the middle of
    an epoch, and not at all once `trainer.estimated_stepping_batches` was asked for. As the position is that of the
    last batch handed out, checkpoints must be written between the end of a step and the start of the next one; and
    after the last batch of an epoch in `on_train_epoch_end`, since Lightning (2.6) miscounts epochs when it resumes
    from that batch's `on_train_batch_end`: harmless once, but a second interruption repeats an epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.batches: Any = None
        self._start: dict[str, Any] | None = None  # position from a checkpoint, for batches to come

    def loader(self, trainer: pl.Trainer) -> Any:
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        self.batches, self._start = None, None

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        batches = self.loader(self.trainer)
        start = self._start if self.batches is None else self.batches.state_dict()
        if start is not None:
            batches.load_state_dict(start)
        self.batches = batches
        return batches

    def state_dict(self) -> dict[str, Any]:
        return {} if self.batches is None else self.batches.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.batches is None:
            self._start = state_dict
        else:  # strategies that restore late
            self.batches.load_state_dict(state_dict)


class PretrainData(ResumableData):
    """Batches of `images` for this rank, on its device.

    batch_size is that of a step over all ranks; seed is of the order; workers decode ImageFiles.
    """

    def __init__(self, images: Images | ImageFiles, batch_size: int, seed: int = 0, workers: int = 0) -> None:
        super().__init__()
        self.images, self.batch_size, self.seed, self.workers = images, batch_size, seed, workers

    def loader(self, trainer: pl.Trainer) -> Batches:
        batches = Batches(
            self.images,
            self.batch_size,
            self.seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            device=trainer.strategy.root_device,
            workers=self.workers,
        )
        batches.limit = limited(trainer, len(batches))
        return batches


def limited(trainer: pl.Trainer, batches: int) -> int:
    """How many of an epoch's batches the trainer takes: `limit_train_batches` is a number or a share of them."""
    limit = trainer.limit_train_batches
    return limit if isinstance(limit, int) else int(limit * batches)
