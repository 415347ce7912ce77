"""Heads of methods without negatives: BYOL and SimSiam, Barlow Twins, VICReg.

B queries, C shared candidates, P positives of each query's own, D dimensions, N images.
"""

import torch
from torch import Tensor

from contrast.candidates import Candidates
from contrast.errors import InputError
from contrast.heads.head import Head
from contrast.losses.scores import Scores, masked_mean


class Alignment(Head):
    """Squared distance of unit vectors, |q - k|^2 = 2 - 2 cos(q, k), mean over positives (Grill et al. 2020, eq. 2).

    With negatives=positives and key=momentum this is BYOL's loss. With key=shared it is 2 + 2 x SimSiam's loss (Chen
    and He 2021, eq. 1).
    """

    def __init__(self) -> None:
        super().__init__(temperature=1.0)

    def losses(self, scores: Scores) -> Tensor:
        """scores [B, P + C] -> [B]; 0 without a positive."""
        cosine = masked_mean(scores.values, scores.positive)
        return torch.where(scores.positive.any(dim=1), 2 - 2 * cosine, 0)


class CrossCorrelation(Head):
    """Barlow Twins (Zbontar et al. 2021, eq. 1): the loss of one dimension. The paper's loss is the sum over all D.

        loss_i = (1 - c_ii)^2 + lambda sum_{j != i} c_ij^2

    The scores c_ij are the correlations of dimension i of one view with dimension j of the other.

    off_diagonal  lambda; InputError if it is negative
    """

    def __init__(self, off_diagonal: float = 5e-3) -> None:
        super().__init__(temperature=1.0)
        if not off_diagonal >= 0:
            raise InputError(f"off_diagonal must not be negative, got {off_diagonal}")
        self.off_diagonal = off_diagonal

    def losses(self, scores: Scores) -> Tensor:
        """scores [D, D] -> [D]."""
        diagonal = (1 - scores.values).square().masked_fill(~scores.positive, 0).sum(dim=1)
        others = scores.values.square().masked_fill(scores.positive | ~scores.valid, 0).sum(dim=1)
        return diagonal + self.off_diagonal * others


class Covariance(Head):
    """VICReg (Bardes et al. 2022, eqs. 1 to 6): the loss of one dimension of one view.

    For dimension i with values x in one view and y in the other, over N images,

        loss_i = invariance mean_n (x_ni - y_ni)^2 + variance max(0, 1 - sqrt(var_i + epsilon))
                 + 2 covariance sum_{j != i} cov_ij^2

    Variances and covariances are those of x, with N - 1 in the denominator. The mean over the dimensions of both views
    is the loss of the authors' code: half of each view's variance term and the whole of its covariance term.

    invariance, variance, covariance  the weights of the three terms
    epsilon  added to the variance below its root, where the slope would be infinite at 0
    Raises InputError for a negative weight, and if epsilon is not positive.
    """

    def __init__(
        self, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0, epsilon: float = 1e-4
    ) -> None:
        super().__init__(temperature=1.0, cosine=False)
        if min(invariance, variance, covariance) < 0 or not epsilon > 0:
            raise InputError(
                "the weights of VICReg must not be negative and epsilon positive: "
                f"{invariance}, {variance}, {covariance}, {epsilon}"
            )
        self.invariance, self.variance, self.covariance = invariance, variance, covariance
        self.epsilon = epsilon

    def row_losses(self, query: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """query [b, N], candidates [D, N] with one positive of each query's own -> losses [b], all of which count."""
        if candidates.positives is None:
            raise InputError("VICReg's head compares dimensions: negatives=dimensions negatives.among=queries")
        invariance = (query - candidates.positives[:, 0]).square().mean(dim=1)
        std, off_diagonal = self.moments(query, candidates)
        loss = self.invariance * invariance + self.variance * (1 - std).clamp(min=0)
        loss = loss + 2 * self.covariance * off_diagonal
        return loss, torch.ones_like(loss, dtype=torch.bool)

    def moments(self, query: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """The standard deviation of every query, [b], and the sum of its squared covariances with the others, [b]."""
        others, images = candidates.vectors, query.shape[1]
        query = query - query.mean(dim=1, keepdim=True)
        others = others - others.mean(dim=1, keepdim=True)
        _, valid = candidates.masks()
        covariances = query @ others.T / (images - 1)  # [b, N] x [D, N] -> [b, D]
        std = (query.square().sum(dim=1) / (images - 1) + self.epsilon).sqrt()
        return std, covariances.masked_fill(~valid, 0).square().sum(dim=1)

    @torch.no_grad()
    def describe(self, query: Tensor, candidates: Candidates) -> dict[str, Tensor]:
        """std: mean standard deviation of a dimension. covariance: mean sum of its squared covariances with others."""
        std, off_diagonal = self.moments(query, candidates)
        return {"std": std.mean(), "covariance": off_diagonal.mean()}
