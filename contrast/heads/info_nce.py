"""The InfoNCE head: the softmax loss over candidates, with what its family changes in the denominator.

B queries, C candidates.
"""

import math

import torch
from torch import Tensor, nn

from contrast.candidates import Candidates
from contrast.distributed import log_mean_exp_over_ranks, mean_over_ranks
from contrast.errors import InputError
from contrast.heads.fused import covers, softmax_statistics
from contrast.heads.head import Head, Scores
from contrast.heads.temperature import Temperature
from contrast.heads.tiles import Tiles, tiles
from contrast.losses.softmax import Statistics, debiased, from_statistics, statistics
from contrast.losses.tiled.masked import MaskedStatistics
from contrast.losses.tiled.plan import Plan
from contrast.losses.tiled.statistics import lse_of_negatives, of_positives


class InfoNCE(Head):
    """Softmax over the candidates of similarity / temperature (van den Oord et al. 2018; Chen et al. 2020).

    temperature      a positive number, or a `Temperature` (`Learnable`, `Cosine`)
    cosine           cosine similarity; False: dot product
    margin           taken from the positives: `CosFace`, `ArcFace`, `LSoftmax`
    decoupled        positives are left out of the denominator: DCL (Yeh et al. 2022, eq. 6)
    positive_sigma   DCLW's sigma (same, eq. 7), usually 0.5: a query's positive score is weighted by
                     2 - exp(cos / sigma) / mean over queries; the weight is taken as a constant. None: 1
    class_prior      tau+ of the debiased loss (Chuang et al. 2020, eq. 8): share of the negatives that are false
    hardness         beta of hard-negative weighting (Robinson et al. 2021, eq. 4); with class_prior it is theirs
    label_smoothing  share of the target spread over all candidates that count; it needs the whole matrix
    tiled            tile by tile, in memory linear in queries and candidates; None: where that is no slower

    Candidates that carry `log_q` are scored `similarity / temperature - log_q`.
    """

    def __init__(
        self,
        temperature: float | Temperature = 0.1,
        cosine: bool = True,
        margin: nn.Module | None = None,
        decoupled: bool = False,
        positive_sigma: float | None = None,
        class_prior: float = 0.0,
        hardness: float = 0.0,
        label_smoothing: float = 0.0,
        tiled: bool | None = None,
    ) -> None:
        super().__init__(temperature, cosine, margin, tiled)
        if not 0 <= class_prior < 1 or not 0 <= label_smoothing < 1 or hardness < 0:
            raise InputError(
                "class_prior and label_smoothing lie in [0, 1), hardness is not negative: "
                f"{class_prior}, {label_smoothing}, {hardness}"
            )
        if positive_sigma is not None and not (decoupled and positive_sigma > 0):
            raise InputError(f"positive_sigma={positive_sigma} must be positive and needs decoupled=true")
        if class_prior and not cosine:
            raise InputError("the debiased loss needs cosine similarity: without a lowest score it has no floor")
        self.decoupled, self.positive_sigma = decoupled, positive_sigma
        self.class_prior, self.hardness, self.label_smoothing = class_prior, hardness, label_smoothing

    def forward(self, query: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor]:
        if candidates.log_q is not None and (self.class_prior or self.hardness):
            raise InputError("class_prior and hardness reweight a batch's negatives, not draws that carry log_q")
        return super().forward(query, candidates)

    def losses(self, scores: Scores) -> Tensor:
        return self.of_statistics(statistics(*scores, hardness=self.hardness, smoothed=self.label_smoothing > 0))

    def tiled_losses(self, query: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor] | None:
        if self.label_smoothing:
            return None
        if covers(self, query, candidates):
            stats = softmax_statistics(self, query, candidates, self.hardness)
            return self.of_statistics(stats), stats.positives > 0
        found = tiles(self, query, candidates)
        if found is None or (found.layout is None and self.hardness):
            return None
        stats = tiled_statistics(found, candidates, self.hardness)
        return self.of_statistics(stats), stats.positives > 0

    def of_statistics(self, stats: Statistics) -> Tensor:
        """Losses [B]."""
        if self.class_prior:
            stats = debiased(stats, self.class_prior, -1 / self.temperature())
        loss = from_statistics(stats, self.decoupled, self.label_smoothing)
        if self.positive_sigma is not None:
            counted = stats.positives > 0
            weight = self._positive_weight(stats.mean_pos, counted)
            there = counted & (stats.negatives > 0)  # where the loss holds mean_pos
            loss = loss + torch.where(there, (1 - weight) * stats.mean_pos, 0)  # weight * mean_pos in place of it
        return loss

    @torch.no_grad()
    def _positive_weight(self, mean_pos: Tensor, counted: Tensor) -> Tensor:
        """2 - exp(cos / sigma) / mean exp(cos / sigma), [B]; the mean is over the counted queries of all ranks."""
        assert self.positive_sigma is not None
        raised = mean_pos * self.temperature() / self.positive_sigma  # [B], cos / sigma
        raised = raised.masked_fill(~counted, torch.finfo(raised.dtype).min)
        log_total = log_mean_exp_over_ranks(raised.logsumexp(dim=0))  # of a rank, as is the count
        count = mean_over_ranks(counted.sum().to(raised.dtype))
        return 2 - count * (raised - log_total).exp()

    def describe_rows(self, scores: Scores) -> dict[str, Tensor]:
        """bound: log(number of valid candidates) - InfoNCE loss.

        Its mean is the bound on mutual information in nats where there is one positive (Poole et al. 2019, eq. 10).
        """
        loss = from_statistics(statistics(*scores))
        return {"bound": scores.valid.sum(1).clamp(min=1).to(loss.dtype).log() - loss}


def tiled_statistics(found: Tiles, candidates: Candidates, hardness: float) -> Statistics:
    """As `statistics`, of scores that are not held."""
    query, vectors, offset = found.query, found.vectors, found.offset
    if found.layout is None:
        plan = Plan(len(query), len(vectors), None)
        return Statistics(*MaskedStatistics.apply(query, vectors, offset, plan, candidates))
    plan, negatives = found.layout.plan, found.layout.negatives

    def lse(scale: float) -> Tensor:
        """Of `scale` times the scores."""
        if scale == 1:
            return lse_of_negatives(query, vectors, offset, plan, found.symmetric, found.blocks)
        half = math.sqrt(scale) if found.symmetric else scale
        scaled = half * query
        others = vectors if not found.symmetric else scaled if vectors is query else half * vectors
        return lse_of_negatives(scaled, others, offset, plan, found.symmetric, found.blocks)

    if not hardness:
        lse_neg = lse(1)
    else:
        lse_neg = lse(1 + hardness) - lse(hardness)
        lse_neg = lse_neg + negatives.clamp(min=1).to(lse_neg.dtype).log()
        lse_neg = torch.where(negatives > 0, lse_neg, torch.finfo(lse_neg.dtype).min)
    lse_pos, mean_pos, positives = of_positives(found.positive_scores, found.positive_row, len(query))
    return Statistics(lse_neg, lse_pos, mean_pos, positives, negatives)
