"""Spans of a corpus in an order that is a pure function of (seed, epoch), from any position on.

T places of a span, W ranks.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from contrast.data.pretraining import ResumableData
from contrast.errors import InputError


class Span(NamedTuple):
    """What a training step gets: a stretch of text."""

    ids: Tensor  # [T] int64, -1 between lines
    number: int  # of the span since the start of the run, over all ranks: what is drawn for it depends on this alone


class Spans:
    """Iterate over an epoch of `ids` as this rank's spans; each pass is the next epoch, or the rest of one.

    ids    [N] int32, a corpus; -1 between lines
    size   T, places of a span; the last of an epoch may be shorter
    seed   of the order of the spans in each epoch; with one span there is none

    With W ranks every W-th span is this rank's, and of a number that W does not divide the last few are left out, so
    that all ranks take as many steps. Raises InputError where there are fewer spans than ranks.
    """

    def __init__(self, ids: Tensor, size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if size < 1:
            raise InputError(f"a span has 1 place or more, got {size}")
        self.ids, self.size, self.seed, self.rank, self.world_size = ids, size, seed, rank, world_size
        self.count = -(-len(ids) // size)
        if self.count < world_size:
            told = f"a corpus of {len(ids)} places makes {self.count} spans of {size}"
            raise InputError(f"{told}, for {world_size} ranks")
        self.epoch, self.position = 0, 0  # of the next span

    def __len__(self) -> int:
        return self.count // self.world_size

    def __iter__(self) -> Iterator[Span]:
        if self.position >= len(self):
            self.epoch, self.position = self.epoch + 1, 0
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        for position in range(self.position, len(self)):
            at = position * self.world_size + self.rank
            start = int(order[at]) * self.size
            self.position = position + 1
            yield Span(self.ids[start : start + self.size].long(), self.epoch * self.count + at)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


class SpanData(ResumableData):
    """The spans of a run for this rank."""

    def __init__(self, ids: Tensor, size: int, seed: int) -> None:
        super().__init__()
        self.ids, self.size, self.seed = ids, size, seed

    def loader(self, trainer: pl.Trainer) -> Spans:
        return Spans(self.ids, self.size, self.seed, trainer.global_rank, trainer.world_size)

    def transfer_batch_to_device(self, batch: Span, device: torch.device, dataloader_idx: int) -> Span:
        return Span(batch.ids.to(device), batch.number)
