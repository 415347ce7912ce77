"""Spans of a corpus in an order that is a pure function of (seed, epoch), from any position on.

T places of a span.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from contrast.data.loader import Resumable, ResumableData
from contrast.errors import InputError


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


class SpanData(ResumableData):
    """The spans of a run, in one process."""

    def __init__(self, ids: Tensor, size: int, seed: int) -> None:
        super().__init__()
        self.ids, self.size, self.seed = ids, size, seed

    def loader(self, trainer: pl.Trainer) -> Spans:
        return Spans(self.ids, self.size, self.seed)

    def transfer_batch_to_device(self, batch: Span, device: torch.device, dataloader_idx: int) -> Span:
        return Span(batch.ids.to(device))
