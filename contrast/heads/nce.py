"""The NCE head: the logistic loss over candidates, "is it data or noise?".

B queries, C candidates.
"""

import torch
from torch import Tensor, nn

from contrast.candidates import Candidates
from contrast.heads.bias import Bias, as_bias
from contrast.heads.head import Head, Scores
from contrast.heads.logistic import logistic_loss
from contrast.heads.temperature import Temperature


class NCE(Head):
    """Binary cross entropy of similarity / temperature + bias - log_q for every candidate (Gutmann and Hyvarinen 2010).

    temperature  a positive number, or a `Temperature`; cosine, margin: as in `InfoNCE`
    bias         -log Z: a number, `LearnedBias` (also SigLIP's), or `Estimated` (the memory bank's)
    correction   False: log_q is left out, which makes it negative sampling (Mikolov et al. 2013): not a model of
                 probabilities, its optimum is log(p / (k q))
    """

    def __init__(
        self,
        temperature: float | Temperature = 0.1,
        cosine: bool = True,
        margin: nn.Module | None = None,
        bias: float | Bias = 0.0,
        correction: bool = True,
    ) -> None:
        super().__init__(temperature, cosine, margin)
        self.bias = as_bias(bias)
        self.correction = correction

    def scores(self, query: Tensor, candidates: Candidates) -> Scores:
        scores = super().scores(query, candidates) if self.correction else self.raw_scores(query, candidates)
        if self.training and torch.is_grad_enabled():
            self.bias.look(_log_z(scores))
        return scores._replace(values=scores.values + self.bias())

    def losses(self, scores: Scores) -> Tensor:
        return logistic_loss(*scores)

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
    each = each.masked_fill(~some, -torch.inf)
    return each.logsumexp(dim=0) - some.sum().clamp(min=1).to(each.dtype).log()
