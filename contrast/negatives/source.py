"""The contract of a source of negatives: a call only reads its state, and `update` and `advance` change it."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from contrast.candidates import Candidates

Queries = list[tuple[Tensor, Candidates]]  # queries [Q, D] with their candidates, once for each direction of the loss


class Source(nn.Module, ABC):
    """A source of negatives: it turns a batch's queries into queries with candidates.

    P pairs of views, B images of this rank, D dimensions.

    ids_are_rows     `forward` indexes a table with `ids`, so every image must have one (a label, with
                     same_label=positive)
    needs_labels     the rows are classes, so ids must be labels: same_label=positive
    supports_groups  images of one group can be left out of each other's negatives: same_label=ignored
    """

    ids_are_rows = False
    needs_labels = False
    supports_groups = True

    @abstractmethod
    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        ids: Tensor,
        groups: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Queries:
        """Queries with their candidates.

        query      [P, B, D]
        key        [P, B, D], key[p] is the positive of query[p]; None: no key was encoded
        ids        [B] whole numbers. Equal ids are positives of each other
        groups     [B] whole numbers. Images of one group are no negatives of each other; None: all others are negatives
        generator  on the CPU, in the same state on every rank: for whatever is drawn for this batch
        """

    def update(self, query: Tensor, key: Tensor | None, ids: Tensor, groups: Tensor | None = None) -> None:
        """Store what this source remembers of the batch. Called after the optimiser's step, without gradient."""

    def advance(self) -> None:
        """Called once after every optimiser step, after `update` with each of its batches."""
