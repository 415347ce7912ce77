"""Spans of a corpus in an order that is a pure function of (seed, epoch), from any position on.

T places of a span.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from contrast.data.images.pretraining import ResumableData, limited
from contrast.errors import InputError


class Span(NamedTuple):
    """What a training step gets: a stretch of text."""

    ids: Tensor  # [T] int64, -1 between lines


class Spans:
    """Iterate over an epoch of `ids` in spans; each pass is the next epoch, or the rest of one.

    ids    [N] int32, a corpus; -1 between lines
    size   T, places of a span; the last of an epoch may be shorter
    seed   of the order of the spans in each epoch; with one span there is none
    limit  spans after which an epoch ends early; None: all are read
    """

    def __init__(self, ids: Tensor, size: int, seed: int, limit: int | None = None) -> None:
        if size < 1:
            raise InputError(f"a span has 1 place or more, got {size}")
        self.ids, self.size, self.seed, self.limit = ids, size, seed, limit
        self.epoch, self.position = 0, 0  # of the next span

    def __len__(self) -> int:
        """Spans of a whole epoch, whatever the limit: Lightning applies its own to this number."""
        return -(-len(self.ids) // self.size)

    def __iter__(self) -> Iterator[Span]:
        epoch = len(self) if self.limit is None else min(len(self), self.limit)
        if self.position >= epoch:
            self.epoch, self.position = self.epoch + 1, 0
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self))
        for position in range(self.position, epoch):
            start = int(order[position]) * self.size
            self.position = position + 1
            yield Span(self.ids[start : start + self.size].long())

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


class SpanData(ResumableData):
    """The spans of a run, in one process."""

    def __init__(self, ids: Tensor, size: int, seed: int) -> None:
        super().__init__()
        self.ids, self.size, self.seed = ids, size, seed

    def loader(self, trainer: pl.Trainer) -> Spans:
        spans = Spans(self.ids, self.size, self.seed)
        spans.limit = limited(trainer, len(spans))
        return spans

    def transfer_batch_to_device(self, batch: Span, device: torch.device, dataloader_idx: int) -> Span:
        return Span(batch.ids.to(device))
