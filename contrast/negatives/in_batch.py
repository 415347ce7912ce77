"""In-batch negatives: the views of the images of the batch, on every rank.

V views, P pairs of views, B images of this rank, W ranks, D dimensions.
"""

import torch
from torch import Tensor

from contrast.candidates import Candidates
from contrast.distributed import gather, rank, world_size
from contrast.errors import InputError
from contrast.negatives.source import Asked, Source


class InBatch(Source):
    """All views of the whole batch are candidates, the other views of an image positive (Chen et al. 2020, eq. 1).

    ring  with several ranks the vectors are passed round instead of gathered, so that no rank holds all of them
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
    ) -> Asked:
        """One direction: the queries are their own candidates, and `key` is not looked at.

        Raises InputError where there is nothing to contrast: fewer than two views, or a batch of one image in all.
        """
        views, images, _ = query.shape
        if views < 2:
            raise InputError(f"in-batch negatives need at least 2 views of an image, got {views}")
        _at_least_two(images)
        flat = query.flatten(0, 1)  # [V, B, D] -> [V B, D]
        query_ids = ids.repeat(views)  # [V B]
        query_groups = None if groups is None else groups.repeat(views)
        own = torch.arange(len(flat), device=ids.device)
        passed = self.ring and world_size() > 1
        candidates = Candidates(
            vectors=flat if passed else gather(flat),  # [W V B, D]
            query_ids=query_ids,
            ids=query_ids if passed else gather(query_ids),
            self_index=own if passed else rank() * len(flat) + own,
            excluded_groups=query_groups if passed or query_groups is None else gather(query_groups),
            query_groups=query_groups,
            symmetric=True,
            ring=passed,
        )
        return [(flat, candidates)]


class Paired(Source):
    """The candidates of query[p] are key[p] of the whole batch: MoCo v3, CLIP, SigLIP.

    reverse  key[p] asks query[p] too: CLIP's second direction (Radford et al. 2021, figure 3)
    ring     with several ranks the vectors are passed round instead of gathered, so that no rank holds all of them
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
    ) -> Asked:
        """A direction for each of the P pairs, twice as many with `reverse`. InputError for a batch of one image."""
        if key is None:
            raise InputError("paired negatives need a key encoder, or a second view")
        _at_least_two(len(ids))
        passed = self.ring and world_size() > 1
        all_ids = ids if passed else gather(ids)
        all_groups = groups if passed or groups is None else gather(groups)

        def direction(asking: Tensor, answering: Tensor) -> tuple[Tensor, Candidates]:
            vectors = answering if passed else gather(answering)
            return asking, Candidates(
                vectors, ids, all_ids, excluded_groups=all_groups, query_groups=groups, ring=passed
            )

        asked = [direction(q, k) for q, k in zip(query, key, strict=True)]
        return asked + [direction(k, q) for q, k in zip(query, key, strict=True) if self.reverse]


def _at_least_two(images: int) -> None:
    if images * world_size() < 2:
        raise InputError(f"a batch of {images} image has no negatives: in-batch negatives need at least 2 images")
