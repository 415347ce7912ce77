"""What both heads share: scores of queries against their candidates, a temperature, what is logged of them.

B queries, C candidates, P answers, D dimensions.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from contrast.candidates import Candidates
from contrast.errors import InputError
from contrast.heads.fused import covers
from contrast.heads.temperature import Temperature, as_temperature
from contrast.heads.tiles import WORTH, WORTH_CUDA, WORTH_GPU, floored
from contrast.losses.similarity import similarity

DESCRIBED = 1024  # queries whose scores are logged


class Scores(NamedTuple):
    """Scores of all candidates, a query's own answers first, and their masks, each [B, P + C]."""

    values: Tensor
    positive: Tensor
    valid: Tensor


class Head(nn.Module):
    """Scores similarity / temperature; a subclass turns them into one loss per query.

    temperature  a positive number, or a `Temperature` (`Learnable`, `Cosine`)
    cosine       cosine similarity; False: dot product
    margin       applied to the cosine of the positives (`CosFace`, `ArcFace`, `LSoftmax`), or None
    tiled        whether the loss is computed tile by tile, in memory linear in B and C, where it can be; None: where
                 that is no slower. The same numbers either way, to rounding
    """

    def __init__(
        self,
        temperature: float | Temperature = 0.1,
        cosine: bool = True,
        margin: nn.Module | None = None,
        tiled: bool | None = None,
    ) -> None:
        super().__init__()
        self.temperature = as_temperature(temperature)
        self.cosine, self.margin, self.tiled = cosine, margin, tiled

    def forward(self, query: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """Losses [B] of `query` [B, D], and which queries count [B] bool: those that have a positive."""
        elsewhere = WORTH if query.device.type == "cpu" else WORTH_GPU
        worth = WORTH_CUDA if covers(self, query, candidates) else elsewhere
        big = len(query) * len(candidates) >= worth
        if self.tiled or candidates.ring or (self.tiled is None and big):
            told = self.tiled_losses(query, candidates)
            if told is not None:
                return told
            if candidates.ring:
                raise InputError(f"{type(self).__name__} with these options needs the whole matrix: set ring=false")
        scores = self.scores(query, candidates)
        return self.losses(scores), scores.positive.any(dim=1)

    def tiled_losses(self, query: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor] | None:
        """As `forward`, tile by tile; None where this head or these candidates need the whole matrix."""
        return None

    def losses(self, scores: Scores) -> Tensor:
        """One loss per query [B]; 0, with a zero gradient, for one without a positive."""
        raise NotImplementedError

    def scores(self, query: Tensor, candidates: Candidates) -> Scores:
        """Corrected scores of `query` [B, D], float32 or float64."""
        values, positive, valid = self.raw_scores(query, candidates)
        correction = _beside(candidates.positives_log_q, candidates.log_q, candidates, values)
        return Scores(values if correction is None else values - correction, positive, valid)

    def raw_scores(self, query: Tensor, candidates: Candidates) -> Scores:
        """As `scores`, without the correction by log_q."""
        positive, valid = candidates.masks()
        values = similarity(query, candidates.vectors, self.cosine)  # [B, C]
        if candidates.ids is not None:  # else none is positive
            margined = self.with_margin(values, query[:, None], candidates.vectors)
            values = values if self.margin is None else torch.where(positive, margined, values)
        if candidates.positives is not None:
            answers = similarity(query, candidates.positives, self.cosine)  # [B, P]
            all_of_them = torch.ones_like(answers, dtype=torch.bool)
            answers = self.with_margin(answers, query[:, None], candidates.positives)
            values = torch.cat([answers, values], dim=1)  # [B, P + C]
            positive = torch.cat([all_of_them, positive], dim=1)
            valid = torch.cat([all_of_them, valid], dim=1)
        return Scores(values / self.temperature(), positive, valid)

    def with_margin(self, values: Tensor, query: Tensor, vectors: Tensor) -> Tensor:
        """Similarities less the margin, as of positives; a dot product is |q| |c| cos, and its cosine bears it.

        query, vectors  [..., D], whose similarities the values [...] are
        """
        if self.margin is None:
            return values
        if self.cosine:
            return self.margin(values)
        query, vectors = query.to(values.dtype), vectors.to(values.dtype)
        lengths = torch.linalg.vector_norm(query, dim=-1) * torch.linalg.vector_norm(vectors, dim=-1)  # [...]
        return lengths * self.margin(values / torch.where(lengths > 0, lengths, 1))

    @torch.no_grad()
    def describe(self, query: Tensor, candidates: Candidates) -> dict[str, Tensor]:
        """What the loss does not say, as scalar tensors, over the first queries that have a positive and a negative.

        At most `DESCRIBED` queries, so that a log step holds no more than a slice of the scores.

        temperature         the present one
        uncounted           queries without a positive
        top1                the best-scored valid candidate is a positive
        positive_score      mean score (similarity / temperature) of the positives; negative_score likewise
        """
        rows = slice(0, min(len(query), DESCRIBED))
        scores = self.raw_scores(query[rows], candidates.tile(rows, slice(None)))
        values, positive, valid = scores
        negative = valid & ~positive
        lowest = torch.finfo(values.dtype).min
        best = values.masked_fill(~valid, lowest).argmax(dim=1, keepdim=True)  # [B, 1]
        figures = {
            "top1": positive.gather(1, best).squeeze(1).to(values.dtype),
            "positive_score": _row_mean(values, positive),
            "negative_score": _row_mean(values, negative),
        } | self.describe_rows(self.scores(query[rows], candidates.tile(rows, slice(None))))
        told = positive.any(1) & negative.any(1)  # [B]
        means = {name: torch.where(told, row, 0).sum() / told.sum().clamp(min=1) for name, row in figures.items()}
        return means | {"temperature": self.temperature(), "uncounted": (~positive.any(1)).sum()}

    def describe_rows(self, scores: Scores) -> dict[str, Tensor]:
        """More figures of each query, [B], by name."""
        return {}

    def plan(self, steps: int) -> None:
        """Called once before training with the number of optimiser steps it will take."""
        self.temperature.plan(steps)

    def advance(self) -> None:
        """Called once after every optimiser step."""
        self.temperature.advance()


def _beside(answers: Tensor | None, shared: Tensor | None, candidates: Candidates, like: Tensor) -> Tensor | None:
    """A rule of the answers [B, P] and one of the shared candidates [C] or [B, C] as one [B, P + C]; 0 where absent."""
    if shared is None and answers is None:
        return None
    rows, count = len(like), len(candidates)
    shared = like.new_zeros(rows, count) if shared is None else floored(shared).expand(rows, count)
    if candidates.positives is None:
        return shared
    answers = like.new_zeros(candidates.positives.shape[:2]) if answers is None else floored(answers)
    return torch.cat([answers, shared], dim=1)


def _row_mean(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)
