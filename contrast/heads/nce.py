"""The NCE head: the logistic loss over candidates, "is it data or noise?".

B queries, C candidates.
"""

import torch
from torch import Tensor, nn

from contrast.candidates import Candidates
from contrast.errors import InputError
from contrast.heads.head import Head
from contrast.heads.scalars import Bias, Temperature, as_bias
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
            raise InputError(f"a datum is contrasted with more than 0 draws of noise, got num_noise={num_noise}")
        self.bias, self.correction, self.num_noise = as_bias(bias), correction, num_noise
        if self.bias.needs_log_z and not correction:
            raise InputError("an estimate of Z needs correction=true: without log_q it is biased")

    def scoring(self) -> Scoring:
        return Scoring(self.temperature(), self.cosine, self.margin, self.correction, self.tiled)

    def forward(self, query: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor]:
        scoring = Scoring(self.temperature(), self.cosine, self.margin, self.correction, self.tiled)
        lists = None
        if self.bias.needs_log_z and self.training and torch.is_grad_enabled():
            log_z, lists = log_partition(query, candidates, scoring)
            self.bias.observe_log_z(log_z)
        return logistic_losses(query, candidates, scoring, self.bias(), self.num_noise, lists)

    def scores(self, query: Tensor, candidates: Candidates) -> Scores:
        """Scores with the bias, as one matrix; log_q is of all draws, whatever `num_noise` is."""
        scores = super().scores(query, candidates)
        return scores._replace(values=scores.values + self.bias())

    @torch.no_grad()
    def describe(self, query: Tensor, candidates: Candidates) -> dict[str, Tensor]:
        """As every head's, and log_z: minus the bias."""
        return super().describe(query, candidates) | {"log_z": -self.bias()}
