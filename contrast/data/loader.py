"""Batches in an order that is a pure function of (seed, epoch), from any position on.

B images of the global batch (over all ranks), W ranks, N images or places of a text, T places of a span.
"""

import math
import pickle
import shutil
import signal
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from contrast.data.images.image_set import Batch, ImageFiles, Images
from contrast.errors import InputError, named_errors

_T = TypeVar("_T")


class Resumable(ABC, Generic[_T]):
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

    @abstractmethod
    def __len__(self) -> int:
        """Batches of a whole epoch, whatever the limit: Lightning applies its own to this number."""

    @abstractmethod
    def read(self, epoch: int, positions: range) -> Iterable[_T]:
        """The batches at `positions` of an epoch."""

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
            most = len(images) // world_size * world_size
            raise InputError(
                f"a data set of {len(images)} images does not fill one batch of {batch_size}: batch_size={most} is the "
                "largest that it does"
            )
        self.device = None if device is None else torch.device(device)
        if isinstance(images, Images) and self.device is not None:
            images = images.to(self.device)
        if isinstance(images, ImageFiles) and not shuffle:
            images = replace(images, on_error="raise")  # no image may be measured by the label of another
        self.images, self.batch_size, self.shuffle = images, batch_size, shuffle
        self.rank, self.world_size, self.workers = rank, world_size, workers
        self._epoch: list[Tensor] = []  # the rows of each batch that is still to come in the current epoch

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
            yield from self._decoded([self.rows(order, position) for position in positions])
        else:
            order = order.to(self.images.labels.device)  # once an epoch, so that no step waits for a copy
            yield from (self.images.take(self.rows(order, position)) for position in positions)

    def _decoded(self, rows: list[Tensor]) -> Iterator[Batch]:
        self._epoch[:] = rows
        with named_errors((OSError,), f"{self.workers} workers cannot be started, try fewer or workers=0"):
            batches = iter(self._loader)  # each takes some of /dev/shm, a process and a few open files
        for batch in batches:
            if isinstance(batch, InputError):
                raise batch
            if isinstance(batch, bytes):
                batch = pickle.loads(batch)
            yield batch if self.device is None else _on(self.device, batch)

    @cached_property
    def _loader(self) -> DataLoader[Batch | bytes | InputError]:
        """Its workers live as long as this object, since starting them for every epoch takes time."""
        images = self.images
        assert isinstance(images, ImageFiles)
        batch_bytes = self.batch_size // self.world_size * images.channels * images.size**2
        waiting = 2 * self.workers + 2  # torch's prefetch_factor for each worker, and those on their way
        return DataLoader(
            _Decoding(images, by_pipe=self.workers > 0 and not has_shared_memory(waiting * batch_bytes)),  # type: ignore[arg-type]
            batch_size=None,  # an item is a whole batch
            sampler=self._epoch,
            num_workers=self.workers,
            worker_init_fn=_ignore_signals,
            persistent_workers=self.workers > 0,
            generator=torch.Generator(),  # the default would draw from torch's global one, whose state is resumed
            pin_memory=self.device is not None and self.device.type == "cuda",
        )


def _on(device: torch.device, batch: Batch) -> Batch:
    """The batch on `device`; the copy does not wait for pinned memory."""
    return Batch(*(part if part is None else part.to(device, non_blocking=True) for part in batch))  # type: ignore[arg-type]


def _ignore_signals(worker: int) -> None:
    """Ctrl-C and a closed terminal reach the whole process group; the first process ends its workers after the step."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@dataclass
class _Decoding:
    """ImageFiles as a data set of torch whose items are whole batches.

    by_pipe  a batch is bytes, which torch sends through a pipe; tensors it would move to shared memory
    """

    images: ImageFiles
    by_pipe: bool

    def __getitem__(self, rows: Tensor) -> Batch | bytes | InputError:
        try:
            batch = self.images.take(rows)
            return pickle.dumps(batch) if self.by_pipe else batch
        except InputError as error:
            return error  # raised in a worker it would arrive with a traceback in its message


def has_shared_memory(needed: int, folder: str = "/dev/shm") -> bool:
    """Whether so many bytes of shared memory are free; a warning if not.

    Containers have 64 MB by default. A worker of torch that finds none dies, and its loader waits for ever.
    """
    free = shutil.disk_usage(folder).free if Path(folder).is_dir() else math.inf
    if free < needed:
        warnings.warn(
            f"{folder} has {free / 1e6:.3g} MB free, and batches of images need {needed / 1e6:.3g}: workers send them "
            "through pipes, which takes longer (docker run --shm-size=... gives more)",
            stacklevel=2,
        )
    return free >= needed


class Span(NamedTuple):
    """What a training step gets: a stretch of text."""

    ids: Tensor  # [T] int64, -1 between lines


class Spans(Resumable[Span]):
    """Iterate over an epoch of `ids` in spans; a `Resumable`.

    ids    [N] int32, a corpus; -1 between lines
    size   T, places of a span; the last of an epoch may be shorter
    seed   of the order of the spans in each epoch; with one span there is none
    limit  spans after which an epoch ends early; None: all are read
    places  of the longest text among the ranks, on which all have equally many spans; None: N
    """

    def __init__(self, ids: Tensor, size: int, seed: int, limit: int | None = None, places: int | None = None) -> None:
        super().__init__(seed, limit)
        if size < 1:
            raise InputError(f"a span has 1 place or more, got {size}")
        self.ids, self.size, self.places = ids, size, len(ids) if places is None else places

    def __len__(self) -> int:
        """Spans of a whole epoch, whatever the limit: Lightning applies its own to this number."""
        return -(-self.places // self.size)

    def read(self, epoch: int, positions: range) -> Iterator[Span]:
        for start in self.permutation(epoch, len(self))[positions.start : positions.stop] * self.size:
            yield Span(self.ids[start : start + self.size].long())
