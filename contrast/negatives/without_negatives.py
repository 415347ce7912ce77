"""Candidates of methods without negatives: positives alone, or dimensions in place of images.

P pairs of views, B images of this rank, W ranks, D dimensions.
"""

import torch
from torch import Tensor

from contrast.candidates import Candidates
from contrast.distributed import gather, rank, world_size
from contrast.errors import InputError
from contrast.negatives.source import Queries, Source


class PositivesOnly(Source):
    """A query's own key, without gradient, is its only candidate: BYOL (Grill et al. 2020), SimSiam (Chen, He 2021)."""

    supports_groups = False

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        ids: Tensor,
        groups: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Queries:
        """One pair of queries and candidates for each of the P pairs of views."""
        if key is None:
            raise InputError("positives need keys: a second view, or key=momentum")
        nothing = query.new_empty(0, query.shape[-1])
        return [(q, Candidates(nothing, ids, positives=k.detach()[:, None])) for q, k in zip(query, key, strict=True)]


class Dimensions(Source):
    """The D dimensions are the queries; the vector of a dimension has its values over the whole batch, [D, W B].

    among  "keys": the candidates of a dimension are all dimensions of the key, and the same dimension is the positive.
           Values are centred, so cosines are correlations (Barlow Twins, Zbontar et al. 2021, eq. 2).
           "queries": the candidates are the other dimensions of the same view, and the same dimension of the key is
           the positive. Values are not centred (VICReg, Bardes et al. 2022, section 4.1)

    Every rank has a share of the D dimensions as its queries.
    """

    supports_groups = False

    def __init__(self, among: str = "keys") -> None:
        super().__init__()
        if among not in ("keys", "queries"):
            raise InputError(f"among is keys or queries, not {among!r}")
        self.among = among

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        ids: Tensor,
        groups: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Queries:
        """One pair of queries and candidates for each of the P pairs of views.

        With two views whose keys are trained, the correlations of the second pair are those of the first, transposed;
        the second pair is then left out. Raises InputError without keys, and for a batch of one image, which has no
        variance.
        """
        if key is None:
            raise InputError("dimensions are compared between two views: a second view, or key=momentum, is needed")
        if query.shape[1] * world_size() < 2:
            raise InputError(f"a batch of {query.shape[1]} image has no variance: at least 2 images are needed")
        pairs = list(zip(query, key, strict=True))
        if self.among == "keys" and len(pairs) == 2 and key.requires_grad:
            pairs = pairs[:1]
        return [self.direction(q, k) for q, k in pairs]

    def direction(self, query: Tensor, key: Tensor) -> tuple[Tensor, Candidates]:
        """This rank's dimensions as queries [D / W, W B], with their candidates; from `query` and `key` [B, D]."""
        q, k = gather(query).T, gather(key).T  # [D, W B]
        number = torch.arange(len(q), device=q.device)
        rows = number.tensor_split(world_size())[rank()]
        if self.among == "queries":
            return q[rows], Candidates(q, rows, self_index=rows, positives=k[rows][:, None])
        q, k = q - q.mean(dim=1, keepdim=True), k - k.mean(dim=1, keepdim=True)
        return q[rows], Candidates(k, rows, number)
