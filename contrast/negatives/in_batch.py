"""In-batch negatives: the views of the images of the batch, on every rank.

V views, P pairs of views, B images of this rank, W ranks, D dimensions.
"""

import torch
from torch import Tensor

from contrast.candidates import Candidates
from contrast.distributed import gather, world_size
from contrast.errors import InputError
from contrast.losses.scores import gathered
from contrast.negatives.source import Queries, Source


class InBatch(Source):
    """All views of the whole batch are candidates, the other views of an image positive (Chen et al. 2020, eq. 1).

    ring  with several ranks the vectors are passed around a ring, not gathered, so that no rank holds all of them.
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
        ranks = world_size()
        if views < 2:
            raise InputError(f"in-batch negatives need at least 2 views of an image, got {views}")
        _check_images(images * ranks)
        flat, ids = query.flatten(0, 1), ids.repeat(views)  # [V, B, D] -> [V B, D], [V B]
        groups = None if groups is None else groups.repeat(views)
        candidates = Candidates(
            vectors=flat,
            query_ids=ids,
            ids=ids,
            self_index=torch.arange(len(flat), device=ids.device),
            excluded_groups=groups,
            query_groups=groups,
            symmetric=True,
            ring=ranks > 1,
        )
        return [(flat, candidates if self.ring or ranks == 1 else gathered(candidates))]


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
        ranks = world_size()
        _check_images(len(ids) * ranks)
        ring, gathers = self.ring and ranks > 1, ranks > 1 and not self.ring
        all_ids = gather(ids) if gathers else ids
        all_groups = gather(groups) if gathers and groups is not None else groups

        def direction(queries: Tensor, keys: Tensor) -> tuple[Tensor, Candidates]:
            vectors = gather(keys) if gathers else keys
            rules = Candidates(vectors, ids, all_ids, excluded_groups=all_groups, query_groups=groups, ring=ring)
            return queries, rules

        forth = [direction(q, k) for q, k in zip(query, key, strict=True)]
        return forth + [direction(k, q) for q, k in zip(query, key, strict=True) if self.reverse]


def _check_images(images: int) -> None:
    if images < 2:
        raise InputError(f"a batch of {images} image has no negatives: in-batch negatives need at least 2 images")
