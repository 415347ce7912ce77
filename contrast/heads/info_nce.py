"""The InfoNCE head: a temperature and the softmax loss over candidates.

B queries, C candidates, D dimensions.
"""

import torch
from torch import Tensor, nn

from contrast.candidates import Candidates
from contrast.heads.similarity import similarity
from contrast.heads.softmax import softmax_loss
from contrast.heads.temperature import Temperature, as_temperature

DESCRIBED = 1024  # queries whose scores are logged


class InfoNCE(nn.Module):
    """Softmax over the candidates of similarity / temperature (van den Oord et al. 2018; Chen et al. 2020).

    temperature  a positive number, or a `Temperature` (`Learnable`, `Cosine`)
    cosine       cosine similarity; False: dot product

    Candidates that carry `log_q` are scored `similarity / temperature - log_q`.
    """

    def __init__(self, temperature: float | Temperature = 0.1, cosine: bool = True) -> None:
        super().__init__()
        self.temperature = as_temperature(temperature)
        self.cosine = cosine

    def scores(self, query: Tensor, candidates: Candidates) -> Tensor:
        """Similarity / temperature of `query` [B, D] and `candidates` -> [B, C] float32."""
        return similarity(query, candidates.vectors, self.cosine) / self.temperature()

    def forward(self, query: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """Losses [B], and which queries count [B] bool: those that have a positive."""
        positive, valid = candidates.masks()
        scores = _corrected(self.scores(query, candidates), candidates)
        return softmax_loss(scores, positive, valid), positive.any(dim=1)

    @torch.no_grad()
    def describe(self, query: Tensor, candidates: Candidates) -> dict[str, Tensor]:
        """What the loss does not say, as scalar tensors, over the first queries that have a positive and a negative.

        At most `DESCRIBED` queries, so that a log step holds no more than a slice of the scores.

        temperature         the present one
        uncounted           queries without a positive
        top1                the best-scored valid candidate is a positive
        positive_score      mean score (similarity / temperature) of the positives; negative_score likewise
        bound               mean of log(number of valid candidates) - loss, the InfoNCE bound on mutual information
                            in nats where there is one positive (Poole et al. 2019, eq. 10)
        """
        rows = slice(0, min(len(query), DESCRIBED))
        query, candidates = query[rows], candidates.tile(rows, slice(None))
        scores = self.scores(query, candidates)
        positive, valid = candidates.masks()
        negative = valid & ~positive
        told = positive.any(1) & negative.any(1)  # [B]
        lowest = torch.finfo(scores.dtype).min
        best = scores.masked_fill(~valid, lowest).argmax(dim=1, keepdim=True)  # [B, 1]
        losses = softmax_loss(_corrected(scores, candidates), positive, valid)
        figures = {
            "top1": positive.gather(1, best).squeeze(1).to(scores.dtype),
            "positive_score": _row_mean(scores, positive),
            "negative_score": _row_mean(scores, negative),
            "bound": valid.sum(1).clamp(min=1).log() - losses,
        }
        means = {name: torch.where(told, row, 0).sum() / told.sum().clamp(min=1) for name, row in figures.items()}
        return means | {"temperature": self.temperature(), "uncounted": (~positive.any(1)).sum()}

    def plan(self, steps: int) -> None:
        """Called once before training with the number of optimiser steps it will take."""
        self.temperature.plan(steps)

    def advance(self) -> None:
        """Called once after every optimiser step."""
        self.temperature.advance()


def _corrected(scores: Tensor, candidates: Candidates) -> Tensor:
    return scores if candidates.log_q is None else scores - candidates.log_q


def _row_mean(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)
