"""torch's adaptive softmax as a head, which holds the class vectors itself.

B queries, D dimensions, N classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from contrast.candidates import Candidates
from contrast.distributed import world_size
from contrast.errors import InputError
from contrast.heads.scalars import ScalarOwner


class AdaptiveSoftmax(ScalarOwner):
    """torch.nn.AdaptiveLogSoftmaxWithLoss (Grave et al. 2017) over classes sorted by falling frequency.

    dim      D, of the queries
    num_ids  N, number of classes
    cutoffs  the first class of each tail cluster; the classes before the first cutoff are the head. None:
             `usual_cutoffs`
    div_value  the factor by which the number of dimensions falls from each cluster to the next
    Takes `Candidates` without vectors (`negatives.Targets`): only the class of each query is read.
    """

    def __init__(self, dim: int, num_ids: int, cutoffs: Sequence[int] | None = None, div_value: float = 4.0) -> None:
        super().__init__()
        cutoffs = usual_cutoffs(num_ids, dim, div_value) if cutoffs is None else cutoffs
        if not cutoffs or list(cutoffs) != sorted(set(cutoffs)) or cutoffs[0] < 1 or cutoffs[-1] >= num_ids:
            raise InputError(
                f"the cutoffs of {num_ids} classes must rise between 1 and {num_ids - 1}, got {list(cutoffs)}"
            )
        widths = [int(dim // div_value ** (n + 1)) for n in range(len(cutoffs))]  # as torch computes them
        if 0 in widths:
            raise InputError(
                f"clusters of {dim} dimensions divided by {div_value}, its square, ... have {widths} dimensions, and "
                f"a cluster needs 1 or more: give fewer than {len(cutoffs)} cutoffs, or a smaller div_value"
            )
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(dim, num_ids, list(cutoffs), div_value)

    def forward(self, query: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """Losses [B] of `query` [B, D], all of which count."""
        counted = torch.ones_like(candidates.query_ids, dtype=torch.bool)
        with torch.autocast(query.device.type, enabled=False):
            losses = -self.softmax(self._as_weights(query), candidates.query_ids).output  # [B]
        if world_size() > 1:  # DDP raises an error if a tail cluster without a target has no gradient
            losses = losses + 0 * sum(parameter.sum() for parameter in self.softmax.parameters())
        return losses, counted

    def log_prob(self, query: Tensor) -> Tensor:
        """Log probabilities of every class, [B, D] -> [B, N]."""
        with torch.autocast(query.device.type, enabled=False):
            return self.softmax.log_prob(self._as_weights(query))

    def _as_weights(self, query: Tensor) -> Tensor:
        return query.to(self.softmax.head.weight.dtype)

    def describe(self, query: Tensor, candidates: Candidates) -> dict[str, Tensor]:
        return {}


def usual_cutoffs(size: int, dim: int, div_value: float = 4.0) -> list[int]:
    """The first cutoff is 2,000, but at most a fifth of all classes; each further one is 4 times the one before.

    No further cluster begins in the second half of the classes or has fewer than 2 dimensions: with 128 dimensions
    10,000 classes have [2000], 50,000 have [2000, 8000], and 200,000 have [2000, 8000, 32000].
    """
    cutoffs = [max(1, min(2000, size // 5))]
    while 8 * cutoffs[-1] <= size and dim / div_value ** (len(cutoffs) + 1) >= 2:
        cutoffs.append(4 * cutoffs[-1])
    return cutoffs
