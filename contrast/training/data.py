"""Lightning data modules that save their position in the data, so that a run resumes at any step."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import pytorch_lightning as pl
from torch import Tensor

from contrast.data.images.image_set import ImageFiles, Images
from contrast.data.loader import Batches, Resumable, Spans
from contrast.data.store import digest
from contrast.data.text.corpus import Corpus
from contrast.distributed import check_equal, world_size
from contrast.errors import InputError


class ResumableData(pl.LightningDataModule, ABC):
    """The batches that `loader` makes, under Lightning, resumable at every step.

    The position in the data is saved here. Lightning saves that of a loader too, but loads it only in the middle of
    an epoch, and not at all once `trainer.estimated_stepping_batches` was read. As the position is that of the
    last batch handed out, checkpoints must be written between the end of a step and the start of the next one; and
    after the last batch of an epoch in `on_train_epoch_end`, since Lightning (2.6) miscounts epochs when it resumes
    from that batch's `on_train_batch_end`: harmless once, but a second interruption repeats an epoch.
    """

    kind: str  # of the data, for error messages
    unit: str  # of `count`, for error messages
    count: int  # how many units the data have
    batches: Resumable | None = None
    _start: Mapping[str, int] | None = None  # position from a checkpoint, for batches to come

    @abstractmethod
    def loader(self, trainer: pl.Trainer) -> Resumable:
        """The batches of an epoch on this rank."""

    def setup(self, stage: str) -> None:
        self.batches, self._start = None, None

    def train_dataloader(self) -> Resumable:
        assert self.trainer is not None
        batches = self.loader(self.trainer)
        limit = self.trainer.limit_train_batches  # a number of batches or a share of them
        batches.limit = limit if isinstance(limit, int) else int(limit * len(batches))
        start = self._start if self.batches is None else self.batches.state_dict()
        if start is not None:
            batches.load_state_dict(start)
        self.batches = batches
        return batches

    def state_dict(self) -> dict[str, int]:
        return {} if self.batches is None else {**self.batches.state_dict(), "count": self.count}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        before = state_dict.get("count", self.count)  # absent from older checkpoints
        if before != self.count:
            raise InputError(
                f"a run must be resumed on its own {self.kind}: {before:,} {self.unit} when the checkpoint was written "
                f"and {self.count:,} now"
            )
        if self.batches is None:
            self._start = state_dict
        else:  # strategies that restore late
            self.batches.load_state_dict(state_dict)


class PretrainData(ResumableData):
    """Batches of `images` for this rank, on its device.

    batch_size is that of a step over all ranks; seed is of the order; workers decode ImageFiles.
    """

    kind = unit = "images"

    def __init__(self, images: Images | ImageFiles, batch_size: int, seed: int = 0, workers: int = 0) -> None:
        super().__init__()
        self.images, self.batch_size, self.seed, self.workers = images, batch_size, seed, workers
        self.count = len(images)

    def loader(self, trainer: pl.Trainer) -> Batches:
        return Batches(
            self.images,
            self.batch_size,
            self.seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            device=trainer.strategy.root_device,
            workers=self.workers,
        )


class SpanData(ResumableData):
    """The spans of the text `ids` [N] that a run trains on, `size` places in each step; `seed` gives their order.

    by_rank  each rank takes an equal part of the `size` places of a step, from its own part of the text. False: every
             rank takes all of them
    parts    numbers of places in the texts of the ranks, if each has read its own text; None: all have the same text
    corpus   the text, if all ranks have the same; InputError when the training begins if one has another
    """

    kind, unit = "text", "words and ends of lines"

    def __init__(
        self,
        ids: Tensor,
        size: int,
        seed: int,
        by_rank: bool = False,
        parts: Sequence[int] | None = None,
        corpus: Corpus | None = None,
    ) -> None:
        super().__init__()
        self.corpus = corpus
        self.ids, self.size, self.seed, self.by_rank, self.parts = ids, size, seed, by_rank, parts
        self.count = len(ids) if parts is None else sum(parts)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.corpus is not None and self.parts is None and world_size() > 1:
            words, counts = self.corpus.words, self.corpus.counts
            text = f"{len(words):,} words at {len(self.ids):,} places (digest {digest(words, counts)[:8]})"
            check_equal("all ranks must train on the same text", text)

    def loader(self, trainer: pl.Trainer) -> Spans:
        rank, ranks = (trainer.global_rank, trainer.world_size) if self.by_rank else (0, 1)
        size, longest = -(-self.size // ranks), -(-len(self.ids) // ranks)
        if self.parts is None:
            return Spans(self.ids[rank * longest : (rank + 1) * longest], size, self.seed, places=longest)
        return Spans(self.ids, size, self.seed, places=max(self.parts))
