"""The contract of a source of negatives: calling it reads, `update` alone writes."""

import torch
from torch import Tensor, nn

from contrast.candidates import Candidates

Asked = list[tuple[Tensor, Candidates]]  # queries [Q, D] with their candidates, once for each direction


class Source(nn.Module):
    """A source of negatives: from a batch's queries to who may answer them.

    P pairs of views, B images of this rank, D dimensions.

    ids_are_rows    ids are numbers of rows: with same_label=positive every image needs a label
    needs_labels  and the rows are classes: it needs same_label=positive
    supports_groups     images of one group are left out of each other's negatives: same_label=ignored
    """

    ids_are_rows = False
    needs_labels = False
    supports_groups = True

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        ids: Tensor,
        groups: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Asked:
        """Queries with their candidates.

        query      [P, B, D]
        key        [P, B, D], key[p] is what answers query[p]; None: nothing was encoded for it
        ids        [B] int64, what an image is: equal ids are positive
        groups     [B] int64, images of one group are no negatives of each other; None: all others are
        generator  on the CPU, in the same state on every rank: of what is drawn for this batch
        """
        raise NotImplementedError

    def update(self, query: Tensor, key: Tensor | None, ids: Tensor, groups: Tensor | None = None) -> None:
        """Take in the batch, after the optimiser's step; arguments as for `forward`, without gradient."""
