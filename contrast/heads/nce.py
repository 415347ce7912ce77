"""The NCE head: the logistic loss over candidates, "is it data or noise?".

B queries, C candidates.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contrast.candidates import Candidates
from contrast.errors import InputError
from contrast.heads.head import Head
from contrast.heads.scalars import Bias, Temperature, as_bias
from contrast.losses.band import Output, PairLoss
from contrast.losses.logistic import log_partition, logistic_losses
from contrast.losses.plan import Scoring
from contrast.losses.scores import Scores


class NCE(Head):
    """Binary cross entropy of similarity / temperature + bias - log_q for every candidate (Gutmann and Hyvarinen 2010).

    temperature  a positive number, or a `Temperature`; cosine, margin: as in `InfoNCE`
    bias         -log Z: a number, `LearnedBias` (also SigLIP's), or `Estimated` (the memory bank's)
    correction   False: log_q is left out, which makes it negative sampling (Mikolov et al. 2013): not a model of
                 probabilities, its optimum is log(p / (k q))
    num_noise    k, how many draws of noise one datum is contrasted with. All C draws of a batch count as k draws: each
                 weighs k / C, and log_q becomes log(k q). The expected loss is that of k draws for each query, with a
                 lower variance. None: k = C
    tiled        as in `Head`

    Under independent draws the optimum is s = log p, normalised by itself. Under Poisson draws, which leave a query's
    own class out of the noise, it is log(p / (1 - p)).
    """

    def __init__(
        self,
        temperature: float | Temperature = 0.1,
        cosine: bool = True,
        margin: nn.Module | None = None,
        bias: float | Bias = 0.0,
        correction: bool = True,
        num_noise: float | None = None,
        tiled: bool | None = None,
    ) -> None:
        super().__init__(temperature, cosine, margin, tiled)
        if num_noise is not None and not num_noise > 0:
            raise InputError(f"the number of noise draws for a datum must be above 0, got num_noise={num_noise}")
        self.bias, self.correction, self.num_noise = as_bias(bias), correction, num_noise
        if self.bias.needs_log_z and not correction:
            raise InputError("an estimate of Z needs correction=true: without log_q it is biased")

    def scoring(self) -> Scoring:
        return Scoring(self.temperature(), self.cosine, self.margin, self.correction, self.tiled)

    def forward(self, query: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor]:
        scoring, lists = self.scoring(), None
        if self.bias.needs_log_z and self.training and torch.is_grad_enabled():
            log_z, lists = log_partition(query, candidates, scoring)
            self.bias.observe_log_z(log_z)
        return logistic_losses(query, candidates, scoring, self.bias(), self.num_noise, lists)

    def scores(self, query: Tensor, candidates: Candidates) -> Scores:
        """Scores with the bias, as one matrix; log_q is of all draws, whatever `num_noise` is."""
        scores = super().scores(query, candidates)
        return scores._replace(values=scores.values + self.bias())

    def has_slopes(self) -> bool:
        """True for dot products without a margin."""
        return type(self).forward is NCE.forward and not (self.cosine or self.margin)

    def noise_weight(self, draws: int) -> float:
        """The weight k / C of each of C draws; 1 without draws."""
        return self.num_noise / draws if draws and self.num_noise else 1.0

    def band_scores(self, output: Output, near: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        near, shared = super().band_scores(output, near, shared)
        if self.bias.needs_log_z and self.training:
            number = output.shared.total.log()  # [N, L, 1], of pairs
            log_z = (shared.logsumexp(dim=2, keepdim=True) + number).logsumexp((0, 1, 2)) - number.logsumexp((0, 1, 2))
            self.bias.observe_log_z(log_z)
        bias = self.bias()
        if self.correction and self.num_noise is not None:
            bias = bias - math.log(self.noise_weight(output.draws))
        return (near + bias, shared + bias) if bias.requires_grad or float(bias) else (near, shared)

    def pair_loss(self, draws: int) -> PairLoss | None:
        if not self.has_slopes() or self.bias.needs_log_z or any(each.requires_grad for each in self.parameters()):
            return None
        weight = self.noise_weight(draws)
        shift = float(self.bias()) - (math.log(weight) if self.correction else 0.0)
        return PairLoss(False, 1 / float(self.temperature()), shift, self.correction, weight)

    def slopes(self, output: Output, near: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        """total (sigmoid(s) - positive) of each column. A pair's own target is not part of its noise."""
        weight = self.noise_weight(output.draws)
        near.sigmoid_()
        near = near.mul_(1 - weight) if output.holds_targets else near
        shared.sigmoid_().sub_(output.shared.positive).mul_(output.shared.total * weight)
        return near.sub_(output.near.positive).mul_(output.near.total), shared

    def total_loss(self, output: Output, near: Tensor, shared: Tensor) -> Tensor:
        """From softplus(-s) = softplus(s) - s."""
        weight = self.noise_weight(output.draws)
        own = 1 - weight if output.holds_targets else 1.0
        of_near = (own * F.softplus(near) - output.near.positive * near) * output.near.total
        of_shared = (F.softplus(shared) - output.shared.positive * shared) * output.shared.total
        return of_near.sum() + weight * of_shared.sum()

    @torch.no_grad()
    def describe(self, query: Tensor, candidates: Candidates) -> dict[str, Tensor]:
        """The metrics of `Head.describe`, and log_z, which is minus the bias."""
        return super().describe(query, candidates) | {"log_z": -self.bias()}
