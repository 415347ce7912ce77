"""The NCE head: the logistic loss over candidates, "is it data or noise?".

B queries, C candidates.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contrast.candidates import Candidates
from contrast.errors import InputError
from contrast.heads.bias import Bias, as_bias
from contrast.heads.fused import covers, logistic_sums, softmax_statistics
from contrast.heads.head import Head, Scores
from contrast.heads.temperature import Temperature
from contrast.heads.tiles import tiles
from contrast.losses.logistic import logistic_loss
from contrast.losses.tiled.masked import MaskedLogistic
from contrast.losses.tiled.plan import Plan
from contrast.losses.tiled.statistics import lse_of_negatives, softplus_of_negatives


class NCE(Head):
    """Binary cross entropy of similarity / temperature + bias - log_q for every candidate (Gutmann and Hyvarinen 2010).

    temperature  a positive number, or a `Temperature`; cosine, margin: as in `InfoNCE`
    bias         -log Z: a number, `LearnedBias` (also SigLIP's), or `Estimated` (the memory bank's)
    correction   False: log_q is left out, which makes it negative sampling (Mikolov et al. 2013): not a model of
                 probabilities, its optimum is log(p / (k q))
    noise        k, how many draws of noise a datum stands against: what is drawn, C for all queries of a batch, counts
                 as k draws, each weighing k / C, and log_q as log(k q). The expected loss is that of k draws for each
                 query, its variance lower. None: k = C
    tiled        tile by tile, in memory linear in queries and candidates; None: where that is no slower
    """

    def __init__(
        self,
        temperature: float | Temperature = 0.1,
        cosine: bool = True,
        margin: nn.Module | None = None,
        bias: float | Bias = 0.0,
        correction: bool = True,
        noise: float | None = None,
        tiled: bool | None = None,
    ) -> None:
        super().__init__(temperature, cosine, margin, tiled)
        if noise is not None and not noise > 0:
            raise InputError(f"a datum stands against more than 0 draws of noise, got {noise}")
        self.noise = noise
        self.bias = as_bias(bias)
        self.correction = correction

    def scores(self, query: Tensor, candidates: Candidates) -> Scores:
        scores = super().scores(query, candidates) if self.correction else self.raw_scores(query, candidates)
        if self.training and torch.is_grad_enabled():
            self.bias.look(_log_z(scores))
        if self.noise is not None and self.correction:  # log_q of k draws, not of all
            number = (scores.valid & ~scores.positive).sum(dim=1, keepdim=True).clamp(min=1)  # [B, 1]
            scores = scores._replace(values=scores.values + (number / self.noise).log())
        return scores._replace(values=scores.values + self.bias())

    def losses(self, scores: Scores) -> Tensor:
        return logistic_loss(*scores, noise=self.noise)

    def tiled_losses(self, query: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor] | None:
        if self.noise is not None:
            return None
        if covers(self, query, candidates):
            if self.bias.looks and self.training and torch.is_grad_enabled():
                with torch.no_grad():
                    stats = softmax_statistics(self, query, candidates, correction=self.correction)
                self.bias.look(_mean_exp(stats.lse_neg, stats.negatives > 0))
            losses, positives = logistic_sums(self, query, candidates, self.bias(), self.correction)
            return losses, positives > 0
        found = tiles(self, query, candidates, self.correction)
        if found is None or (found.layout is None and self.bias.looks):
            return None
        if self.bias.looks and self.training and torch.is_grad_enabled():
            assert found.layout is not None
            with torch.no_grad():
                lse = lse_of_negatives(
                    found.query, found.vectors, found.offset, found.layout.plan, found.symmetric, found.blocks
                )
            self.bias.look(_mean_exp(lse, found.layout.negatives > 0))
        bias = self.bias().to(found.query.dtype)
        if found.layout is None:
            plan = Plan(len(query), len(candidates), None)
            offset = bias.expand(len(candidates)) if found.offset is None else found.offset + bias
            losses, positives = MaskedLogistic.apply(found.query, found.vectors, offset, plan, candidates)
        else:
            losses = softplus_of_negatives(
                found.query, found.vectors, found.offset, bias, found.layout.plan, found.blocks
            )
            own = F.softplus(-(found.positive_scores + bias))
            losses = losses.index_add(0, found.positive_row, own)
            positives = torch.bincount(found.positive_row, minlength=len(query))
        return torch.where(positives > 0, losses, 0), positives > 0

    @torch.no_grad()
    def describe(self, query: Tensor, candidates: Candidates) -> dict[str, Tensor]:
        """As every head's, and log_z: minus the bias."""
        return super().describe(query, candidates) | {"log_z": -self.bias()}

    def advance(self) -> None:
        super().advance()
        self.bias.advance()


@torch.no_grad()
def _log_z(scores: Scores) -> Tensor:
    """log of the mean over queries of sum_j exp(s_j) / (k q_j) over the noise: of corrected scores a log-sum-exp.

    Queries without noise are left out; -inf where no query has any.
    """
    noise = scores.valid & ~scores.positive
    each = scores.values.masked_fill(~noise, torch.finfo(scores.values.dtype).min).logsumexp(dim=1)  # [B]
    some = noise.any(dim=1)
    return _mean_exp(each, some)


def _mean_exp(values: Tensor, some: Tensor) -> Tensor:
    """log of the mean of exp(values [B]) over those that are `some` [B] bool."""
    total = values.masked_fill(~some, -torch.inf).logsumexp(dim=0)
    return total - some.sum().clamp(min=1).to(values.dtype).log()
