"""In-batch negatives: the views of the images of the batch, on every rank.

V views, P pairs of views, B images of this rank, W ranks, D dimensions.
"""

import torch
from torch import Tensor

from contrast.candidates import Candidates
from contrast.distributed import gather, rank, world_size
from contrast.errors import InputError
from contrast.ids import as_ids
from contrast.negatives.source import Queries, Source


class InBatch(Source):
    """All views of the whole batch are candidates, the other views of an image positive (Chen et al. 2020, eq. 1).

    ring  with several ranks the vectors are ring around a ring instead of gathered, so that no rank holds all of them.
          Positives must then be on the rank of their query, so ids must not be labels
    """

    def __init__(self, ring: bool = False) -> None:
        super().__init__()
        self.ring = ring

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        ids: Tensor,
        groups: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Queries:
        """One direction: the queries are their own candidates. `key` is not used.

        Raises InputError for fewer than two views, and for a batch of one image over all ranks: there are no negatives.
        """
        views, images, _ = query.shape
        if views < 2:
            raise InputError(f"in-batch negatives need at least 2 views of an image, got {views}")
        _at_least_two(images)
        ids, groups = as_ids("ids", ids), None if groups is None else as_ids("groups", groups)
        flat = query.flatten(0, 1)  # [V, B, D] -> [V B, D]
        query_ids = ids.repeat(views)  # [V B]
        query_groups = None if groups is None else groups.repeat(views)
        index = torch.arange(len(flat), device=ids.device)
        ring = self.ring and world_size() > 1
        candidates = Candidates(
            vectors=flat if ring else gather(flat),  # [W V B, D]
            query_ids=query_ids,
            ids=query_ids if ring else gather(query_ids),
            self_index=index if ring else rank() * len(flat) + index,
            excluded_groups=query_groups if ring or query_groups is None else gather(query_groups),
            query_groups=query_groups,
            symmetric=True,
            ring=ring,
        )
        return [(flat, candidates)]


class Paired(Source):
    """The candidates of query[p] are key[p] of the whole batch: MoCo v3, CLIP, SigLIP.

    reverse  the keys are queries, too, with query[p] of the whole batch as candidates: CLIP's second direction
             (Radford et al. 2021, figure 3)
    ring     as in `InBatch`
    """

    def __init__(self, reverse: bool = False, ring: bool = False) -> None:
        super().__init__()
        self.reverse, self.ring = reverse, ring

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        ids: Tensor,
        groups: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Queries:
        """A direction for each of the P pairs, twice as many with `reverse`. InputError for a batch of one image."""
        if key is None:
            raise InputError("paired negatives need a key encoder, or a second view")
        _at_least_two(len(ids))
        ids, groups = as_ids("ids", ids), None if groups is None else as_ids("groups", groups)
        ring = self.ring and world_size() > 1
        all_ids = ids if ring else gather(ids)
        all_groups = groups if ring or groups is None else gather(groups)

        def direction(queries: Tensor, keys: Tensor) -> tuple[Tensor, Candidates]:
            vectors = keys if ring else gather(keys)
            return queries, Candidates(
                vectors, ids, all_ids, excluded_groups=all_groups, query_groups=groups, ring=ring
            )

        forth = [direction(q, k) for q, k in zip(query, key, strict=True)]
        return forth + [direction(k, q) for q, k in zip(query, key, strict=True) if self.reverse]


def _at_least_two(images: int) -> None:
    if images * world_size() < 2:
        raise InputError(f"a batch of {images} image has no negatives: in-batch negatives need at least 2 images")
