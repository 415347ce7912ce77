"""In-batch negatives: every view of every image of the batch, on every rank.

V views, B images of this rank, W ranks, D dimensions.
"""

import torch
from torch import Tensor, nn

from contrast.candidates import Candidates
from contrast.distributed import gather, rank
from contrast.errors import InputError


class InBatch(nn.Module):
    """All views of the whole batch are candidates, the other views of an image positive (Chen et al. 2020, eq. 1)."""

    def forward(self, query: Tensor, key: Tensor, ids: Tensor) -> Candidates:
        """Candidates of the V*B queries, view by view.

        query, key [V, B, D]: the same tensor, or keys of another encoder; ids [B] int64, one an image. Raises
        InputError where there is nothing to contrast: fewer than two views, or a batch of one image in all.
        """
        views, images, _ = query.shape
        if views < 2:
            raise InputError(f"in-batch negatives need at least 2 views of an image, got {views}")
        vectors = gather(key.flatten(0, 1))  # [V, B, D] -> [W V B, D]
        if len(vectors) == views:
            raise InputError(f"a batch of {images} image has no negatives: in-batch negatives need at least 2 images")
        query_ids = ids.repeat(views)  # [V B]
        own = rank() * len(query_ids) + torch.arange(len(query_ids), device=ids.device)  # [V B]
        return Candidates(vectors, gather(query_ids), query_ids, own)
