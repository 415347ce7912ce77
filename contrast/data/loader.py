"""Batches of a data set in an order that is a pure function of (seed, epoch), from any position on.

B images of the global batch (over all ranks), W ranks, N images.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from contrast.data.images.image_set import Batch, ImageFiles, Images
from contrast.errors import InputError


class Batches:
    """Iterate over an epoch of `images` as this rank's Batch of each step.

    batch_size  B, images of a step over all ranks; rank r gets the r-th contiguous part of each
    seed        of the order; epoch e is the permutation drawn from (seed, e), whatever the device and the workers
    shuffle     True: a new order each epoch, the last partial batch dropped. False: the order of the data set, and
                the last partial batch is kept
    device      where batches lie; images in memory are moved there once, as uint8, and sliced there
    workers     processes that decode ImageFiles; images in memory need none
    limit       batches after which an epoch ends early

    Each pass is the next epoch, or the rest of one that was left early. `state_dict()` is the position after the last
    batch handed out; loaded into another object it makes the next pass continue there.

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
        if batch_size < 1 or batch_size % world_size:
            raise InputError(f"a batch of {batch_size} images does not divide equally among {world_size} ranks")
        if not 0 <= rank < world_size:
            raise InputError(f"rank {rank} does not exist among {world_size} ranks")
        if seed < 0:
            raise InputError(f"the seed of the order must not be negative, but is {seed}")
        if len(images) == 0:
            raise InputError("the data set is empty")
        if shuffle and len(images) < batch_size:
            raise InputError(f"a data set of {len(images)} images does not fill one batch of {batch_size}")
        if isinstance(images, ImageFiles) and not shuffle:
            images = replace(images, on_error="raise")  # no image is measured in the place and by the label of another
        self.device = None if device is None else torch.device(device)
        if isinstance(images, Images) and self.device is not None:
            images = images.to(self.device)
        self.images, self.batch_size, self.seed, self.shuffle = images, batch_size, seed, shuffle
        self.rank, self.world_size, self.workers, self.limit = rank, world_size, workers, limit
        self.epoch, self.position = 0, 0  # of the next batch

    def __len__(self) -> int:
        """Batches of a whole epoch, whatever the limit: Lightning applies its own to this number."""
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole + bool(rest and not self.shuffle)

    @property
    def epoch_batches(self) -> int:
        """Batches of an epoch, the limit applied."""
        return len(self) if self.limit is None else min(len(self), self.limit)

    def order(self, epoch: int) -> Tensor:
        """Rows of the data set in the order of this epoch, [N] int64."""
        if not self.shuffle:
            return torch.arange(len(self.images))
        return torch.from_numpy(np.random.default_rng((self.seed, epoch)).permutation(len(self.images)))

    def rows(self, order: Tensor, position: int) -> Tensor:
        """This rank's rows of the batch at `position` in an epoch of this order, [B / W]."""
        batch = order[position * self.batch_size :][: self.batch_size]
        return batch.tensor_split(self.world_size)[self.rank]

    def __iter__(self) -> Iterator[Batch]:
        # A generator: the position is read at the first `next`. Lightning makes iterators that it never uses.
        if self.position >= self.epoch_batches:
            self.epoch, self.position = self.epoch + 1, 0
        order, positions = self.order(self.epoch), range(self.position, self.epoch_batches)
        taken: Iterable[Batch]
        if isinstance(self.images, ImageFiles):
            taken = self._decoded(self.images, [self.rows(order, position) for position in positions])
        else:
            order = order.to(self.images.labels.device)  # once an epoch, so that no step waits for a copy
            taken = (self.images.take(self.rows(order, position)) for position in positions)
        for position, batch in zip(positions, taken, strict=True):
            self.position = position + 1
            yield batch

    def _decoded(self, images: ImageFiles, rows: list[Tensor]) -> Iterator[Batch]:
        loader = DataLoader(
            _Decoding(images),
            batch_size=None,  # an item is a whole batch
            sampler=rows,
            num_workers=self.workers,
            generator=torch.Generator(),  # the default would draw from torch's global one, whose state is resumed
            pin_memory=self.device is not None and self.device.type == "cuda",
        )
        for batch in loader:
            if isinstance(batch, InputError):
                raise batch
            if self.device is not None:
                parts = {name: part for name, part in batch._asdict().items() if part is not None}
                batch = batch._replace(**{k: part.to(self.device, non_blocking=True) for k, part in parts.items()})
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


class _Decoding(Dataset):
    """ImageFiles as a torch Dataset whose items are whole batches."""

    def __init__(self, images: ImageFiles) -> None:
        self.images = images

    def __getitem__(self, rows: Tensor) -> Batch | InputError:
        try:
            return self.images.take(rows)
        except InputError as error:
            return error  # raised in a worker it would arrive with a traceback in its message
