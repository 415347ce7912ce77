"""Trained prototypes as candidates: DINO and SwAV.

P pairs of views, B images of this rank, D dimensions, K prototypes, T temperature of the teacher.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from contrast.candidates import Candidates, Teacher
from contrast.distributed import log_mean_exp_over_ranks, mean_over_ranks
from contrast.errors import InputError
from contrast.losses.similarity import similarity
from contrast.negatives.source import Queries, Source


class Prototypes(Source):
    """Queries are scored against K trained prototypes; the target is the softmax of the key's scores with them.

    So that the target does not become the same for all images, a number is subtracted from the key's scores with each
    prototype: their mean over past batches ("centring", Caron et al. 2021, eq. 4), or the number for which the batch
    uses all prototypes equally ("sinkhorn", Caron et al. 2020, eqs. 3 to 5).

    size                 K
    dim                  D
    teacher_temperature  T; epsilon in SwAV
    balance              "centring" or "sinkhorn"
    iterations           number of Sinkhorn-Knopp iterations
    center_momentum      momentum of the mean, with "centring"
    momentum             keys are scored against a moving average of the prototypes with this momentum, like the last
                         layer of DINO's teacher. 0: against the prototypes themselves, as in SwAV

    Raises InputError for values out of range, and in the forward pass if there are no keys.
    """

    supports_groups = False

    average: Tensor
    center: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        teacher_temperature: float = 0.04,
        balance: Literal["centring", "sinkhorn"] = "centring",
        iterations: int = 3,
        center_momentum: float = 0.9,
        momentum: float = 0.0,
    ) -> None:
        super().__init__()
        if size < 2 or dim < 1:
            raise InputError(f"prototypes need at least 2 rows and 1 dimension, got {size} and {dim}")
        if balance not in ("centring", "sinkhorn"):
            raise InputError(f"balance is centring or sinkhorn, not {balance!r}")
        if not teacher_temperature > 0 or iterations < 1:
            raise InputError(
                f"teacher_temperature must be positive and iterations at least 1, got {teacher_temperature} and "
                f"{iterations}"
            )
        if not 0 <= center_momentum <= 1 or not 0 <= momentum <= 1:
            raise InputError(f"momenta lie in [0, 1]: center_momentum={center_momentum}, momentum={momentum}")
        self.vectors = nn.Parameter(torch.nn.init.orthogonal_(torch.empty(size, dim)))
        self.register_buffer("average", self.vectors.detach().clone())
        self.register_buffer("center", torch.zeros(size))
        self.teacher_temperature, self.balance, self.iterations = teacher_temperature, balance, iterations
        self.center_momentum, self.momentum = center_momentum, momentum

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        ids: Tensor,
        groups: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Queries:
        """One pair of queries and candidates for each of the P pairs of views; no gradient flows to the key."""
        if key is None:
            raise InputError("prototypes need keys: a second view, or key=momentum")
        directions = []
        for q, k in zip(query, key.detach(), strict=True):
            teacher = Teacher(k, self.teacher_temperature, self.teacher_vectors(), self.correction(k))
            directions.append((q, Candidates(self.vectors, ids, teacher=teacher)))
        return directions

    def teacher_vectors(self) -> Tensor:
        """The prototypes that keys are scored against, [K, D]."""
        return self.average if self.momentum else self.vectors.detach()

    @torch.no_grad()
    def correction(self, key: Tensor) -> Tensor:
        """The number to subtract from the scores with each prototype, [K], for the keys [B, D] of one view.

        The scores are divided by T. With "sinkhorn" the keys of all ranks count.
        """
        if self.balance == "centring":
            return self.center / self.teacher_temperature
        scores = similarity(key, self.teacher_vectors()) / self.teacher_temperature  # [B, K]
        of_query = scores.new_zeros(len(scores), 1)
        for _ in range(self.iterations):  # in logarithms, up to constants that cancel in the softmax
            of_prototype = log_mean_exp_over_ranks((scores - of_query).logsumexp(dim=0))  # [K]
            of_query = (scores - of_prototype).logsumexp(dim=1, keepdim=True)  # [B, 1]
        return of_prototype

    @torch.no_grad()
    def update(self, query: Tensor, key: Tensor | None, ids: Tensor, groups: Tensor | None = None) -> None:
        assert key is not None
        if self.balance == "centring":
            # the average as it was during the step: without momentum, the optimiser has moved the prototypes since
            mean = mean_over_ranks(similarity(key.flatten(0, 1), self.average).mean(dim=0))  # [P B, K] -> [K]
            self.center.lerp_(mean.to(self.center.dtype), 1 - self.center_momentum)

    @torch.no_grad()
    def advance(self) -> None:
        self.average.lerp_(self.vectors, 1 - self.momentum)  # without momentum a copy
