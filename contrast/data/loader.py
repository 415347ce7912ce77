"""Batches in an order that is a pure function of (seed, epoch), from any position on, and their place under Lightning.

B images of the global batch (over all ranks), W ranks, N images or places of a text, T places of a span.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from contrast.data.images.image_set import Batch, ImageFiles, Images
from contrast.errors import InputError

_T = TypeVar("_T")


class Resumable(Generic[_T]):
    """Iterate over epochs of batches; each pass is the next epoch, or the rest of one that was left early.

    limit  batches after which an epoch ends early; None: all are read

    `state_dict()` is the position after the last batch handed out; loaded into another object it makes the next pass
    continue there. A subclass gives `__len__` and `read`.
    """

    def __init__(self, seed: int, limit: int | None) -> None:
        if seed < 0:
            raise InputError(f"the seed of the order must not be negative, but is {seed}")
        self.seed, self.limit = seed, limit
        self.epoch, self.position = 0, 0  # of the next batch

    def __len__(self) -> int:
        """Batches of a whole epoch, whatever the limit: Lightning applies its own to this number."""
        raise NotImplementedError

    def read(self, epoch: int, positions: range) -> Iterable[_T]:
        """The batches at `positions` of an epoch."""
        raise NotImplementedError

    @property
    def epoch_batches(self) -> int:
        """Batches of an epoch, the limit applied."""
        return len(self) if self.limit is None else min(len(self), self.limit)

    def permutation(self, epoch: int, count: int) -> np.ndarray:
        """The order of `count` things in an epoch, [count] int64."""
        return np.random.default_rng((self.seed, epoch)).permutation(count)

    def __iter__(self) -> Iterator[_T]:
        # A generator: the position is read at the first `next`. Lightning makes iterators that it never uses.
        if self.position >= self.epoch_batches:
            self.epoch, self.position = self.epoch + 1, 0
        positions = range(self.position, self.epoch_batches)
        for position, batch in zip(positions, self.read(self.epoch, positions), strict=True):
            self.position = position + 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


class Batches(Resumable[Batch]):
    """Iterate over an epoch of `images` as this rank's Batch of each step; a `Resumable`.

    batch_size  B, images of a step over all ranks; rank r gets the r-th contiguous part of each
    seed        of the order; epoch e is the permutation drawn from (seed, e), whatever the device and the workers
    shuffle     True: a new order each epoch, the last partial batch dropped. False: the order of the data set, and
                the last partial batch is kept
    device      of the batches; images in memory are moved there once, as uint8, and sliced there
    workers     processes that decode ImageFiles; images in memory need none
    limit       batches after which an epoch ends early

    Where a file cannot be read, its row is an UnreadableImage; but in a shuffled order with on_error="skip", the next
    image takes its place (ImageFiles).

    Raises InputError if B is not a multiple of W, or shuffled batches are larger than the data set.
    """

    def __init__(
        self,
        images: Images | ImageFiles,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        device: torch.device | str | None = None,
        workers: int = 0,
        limit: int | None = None,
    ) -> None:
        super().__init__(seed, limit)
        if batch_size < 1 or batch_size % world_size:
            raise InputError(f"a batch of {batch_size} images does not divide equally among {world_size} ranks")
        if not 0 <= rank < world_size:
            raise InputError(f"rank {rank} does not exist among {world_size} ranks")
        if len(images) == 0:
            raise InputError("the data set is empty")
        if shuffle and len(images) < batch_size:
            raise InputError(f"a data set of {len(images)} images does not fill one batch of {batch_size}")
        self.device = None if device is None else torch.device(device)
        if isinstance(images, Images) and self.device is not None:
            images = images.to(self.device)
        if isinstance(images, ImageFiles) and not shuffle:
            images = replace(images, on_error="raise")  # no image may be measured by the label of another
        self.images, self.batch_size, self.shuffle = images, batch_size, shuffle
        self.rank, self.world_size, self.workers = rank, world_size, workers

    def __len__(self) -> int:
        """Batches of a whole epoch, whatever the limit: Lightning applies its own to this number."""
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole + bool(rest and not self.shuffle)

    def order(self, epoch: int) -> Tensor:
        """Rows of the data set in the order of this epoch, [N] int64."""
        count = len(self.images)
        return torch.from_numpy(self.permutation(epoch, count)) if self.shuffle else torch.arange(count)

    def rows(self, order: Tensor, position: int) -> Tensor:
        """This rank's rows of the batch at `position` in an epoch of this order, [B / W]."""
        batch = order[position * self.batch_size :][: self.batch_size]
        return batch.tensor_split(self.world_size)[self.rank]

    def read(self, epoch: int, positions: range) -> Iterator[Batch]:
        order = self.order(epoch)
        if isinstance(self.images, ImageFiles):
            yield from self._decoded(self.images, [self.rows(order, position) for position in positions])
        else:
            order = order.to(self.images.labels.device)  # once an epoch, so that no step waits for a copy
            yield from (self.images.take(self.rows(order, position)) for position in positions)

    def _decoded(self, images: ImageFiles, rows: list[Tensor]) -> Iterator[Batch]:
        loader: DataLoader[Batch | InputError] = DataLoader(
            _Decoding(images),  # type: ignore[arg-type]
            batch_size=None,  # an item is a whole batch
            sampler=rows,
            num_workers=self.workers,
            generator=torch.Generator(),  # the default would draw from torch's global one, whose state is resumed
            pin_memory=self.device is not None and self.device.type == "cuda",
        )
        for batch in loader:
            if isinstance(batch, InputError):
                raise batch
            yield batch if self.device is None else batch.to(self.device)


@dataclass
class _Decoding:
    """ImageFiles as a data set of torch whose items are whole batches."""

    images: ImageFiles

    def __getitem__(self, rows: Tensor) -> Batch | InputError:
        try:
            return self.images.take(rows)
        except InputError as error:
            return error  # raised in a worker it would arrive with a traceback in its message


class Span(NamedTuple):
    """What a training step gets: a stretch of text."""

    ids: Tensor  # [T] int64, -1 between lines


class Spans(Resumable[Span]):
    """Iterate over an epoch of `ids` in spans; a `Resumable`.

    ids    [N] int32, a corpus; -1 between lines
    size   T, places of a span; the last of an epoch may be shorter
    seed   of the order of the spans in each epoch; with one span there is none
    limit  spans after which an epoch ends early; None: all are read
    """

    def __init__(self, ids: Tensor, size: int, seed: int, limit: int | None = None) -> None:
        super().__init__(seed, limit)
        if size < 1:
            raise InputError(f"a span has 1 place or more, got {size}")
        self.ids, self.size = ids, size

    def __len__(self) -> int:
        """Spans of a whole epoch, whatever the limit: Lightning applies its own to this number."""
        return -(-len(self.ids) // self.size)

    def read(self, epoch: int, positions: range) -> Iterator[Span]:
        for start in self.permutation(epoch, len(self))[positions.start : positions.stop] * self.size:
            yield Span(self.ids[start : start + self.size].long())


class ResumableData(pl.LightningDataModule):
    """The batches that `loader` makes, under Lightning, resumable at every step.

    The position in the data is saved here. Lightning saves that of a loader too, but loads it only in the middle of
    an epoch, and not at all once `trainer.estimated_stepping_batches` was read. As the position is that of the
    last batch handed out, checkpoints must be written between the end of a step and the start of the next one; and
    after the last batch of an epoch in `on_train_epoch_end`, since Lightning (2.6) miscounts epochs when it resumes
    from that batch's `on_train_batch_end`: harmless once, but a second interruption repeats an epoch.
    """

    batches: Resumable | None = None
    _start: Mapping[str, int] | None = None  # position from a checkpoint, for batches to come

    def loader(self, trainer: pl.Trainer) -> Resumable:
        raise NotImplementedError

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
        return {} if self.batches is None else self.batches.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
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
    """The spans of a run, in one process."""

    def __init__(self, ids: Tensor, size: int, seed: int) -> None:
        super().__init__()
        self.ids, self.size, self.seed = ids, size, seed

    def loader(self, trainer: pl.Trainer) -> Spans:
        return Spans(self.ids, self.size, self.seed)
