"""What all heads share: a temperature, a similarity, a margin, and the logged metrics of the scores.

B queries, C candidates, P positives of each query's own, D dimensions.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from contrast.candidates import LOWEST_LOG_Q, Candidates
from contrast.heads.scalars import ScalarOwner, Temperature, as_temperature
from contrast.losses.band import Output, PairLoss
from contrast.losses.plan import Scoring, plan
from contrast.losses.scores import Scores, in_blocks, masked_mean, score_matrix

MAX_DESCRIBED_QUERIES = 1024
MAX_DESCRIBED_SCORES = 2**17


class LossHead(Protocol):
    """What training needs of a head, whoever wrote it."""

    def __call__(self, query: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor]: ...

    def describe(self, query: Tensor, candidates: Candidates) -> dict[str, Tensor]: ...

    def plan(self, steps: int) -> None: ...

    def advance(self) -> None: ...


class Head(ScalarOwner):
    """Scores similarity / temperature. A subclass turns the scores into one loss per query, in `losses`.

    temperature  a positive number, or a `Temperature` (`Learnable`, `Cosine`)
    cosine       cosine similarity; False: dot product
    margin       applied to the cosine of the positives (`CosFace`, `ArcFace`, `LSoftmax`), or None
    tiled        False: the loss is computed from the whole matrix of scores; True: never from the whole matrix;
                 None: whichever is faster. The numbers are the same, to rounding
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

    def scoring(self) -> Scoring:
        """How similarities become scores. A head that overrides `forward` must use the same there."""
        return Scoring(self.temperature(), self.cosine, self.margin, tiled=self.tiled)

    def forward(self, query: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """Losses [B] of `query` [B, D], and which queries count [B] bool: those that have a positive.

        For a subclass that has `losses` or `row_losses`. Few scores are one matrix. Many are computed in blocks of
        queries, each of them again in the backward pass, so that memory is linear in queries and candidates.
        """
        how = plan(query, candidates, self.scoring(), lists=False, masks=False, triton=False)
        used = list(self.parameters())
        losses, counted = in_blocks(self.row_losses, query, candidates, used, self.cosine, how.method == "matrix")
        return losses, counted

    def row_losses(self, query: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """As `forward`, for the queries of one block."""
        scores = self.scores(query, candidates)
        return self.losses(scores), scores.positive.any(dim=1)

    def losses(self, scores: Scores) -> Tensor:
        """One loss per query [B], of that query's scores alone; 0, with a zero gradient, without a positive."""
        raise NotImplementedError

    def scores(self, query: Tensor, candidates: Candidates) -> Scores:
        """Scores of `query` [B, D] as one matrix, float32 or float64."""
        return score_matrix(query, candidates, self.scoring())

    def has_slopes(self) -> bool:
        """Whether `slopes` and `total_loss` are defined, for the bands of pairs in which word vectors are trained."""
        return False

    def band_scores(self, output: Output, near: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of dot products with the near and the shared columns, as `scores` has them."""
        temperature, correction, scores = self.temperature(), self.scoring().correction, []
        scaled = temperature.requires_grad or float(temperature) != 1
        for dots, columns in ((near, output.near), (shared, output.shared)):
            dots = dots / temperature if scaled else dots
            if columns.log_q is not None and correction:
                dots = dots - columns.log_q.clamp(min=LOWEST_LOG_Q).to(dots.dtype)
            scores.append(dots)
        return scores[0], scores[1]

    def pair_loss(self, draws: int) -> PairLoss | None:
        """The loss of a pair with `draws` draws, in plain numbers; None if one of them is learned or estimated."""
        return None

    def noise_weight(self, draws: int) -> float:
        """How many pairs each of `draws` draws counts as, in the limit on the pairs of a row: together they are one."""
        return 1 / draws

    def slopes(self, output: Output, near: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of the sum of the pairs' losses by the `band_scores` near and shared, which are overwritten."""
        raise NotImplementedError

    def shared_pairs(self, output: Output, slopes: Tensor) -> Tensor:
        """How many pairs each shared row [N, M] counts as, in the limit on the pairs of a row; slopes [N, L, M]."""
        return (self.noise_weight(output.draws) * output.shared.total).sum(dim=1).expand(slopes[:, 0].shape)

    def counts_of_all_classes(self, query: Tensor, candidates: Candidates, counts: Tensor) -> Tensor:
        """As `shared_pairs`, for the scores of pairs [P, 1 + C] with all classes as candidates; usually `counts`."""
        return counts

    def total_loss(self, output: Output, near: Tensor, shared: Tensor) -> Tensor:
        """The sum of the pairs' losses, a scalar, from the `band_scores` near and shared."""
        raise NotImplementedError

    @torch.no_grad()
    def describe(self, query: Tensor, candidates: Candidates) -> dict[str, Tensor]:
        """Metrics that the loss does not show, as scalar tensors; NaN where there is nothing to measure.

        They are means over the first queries that have a positive and a negative: at most MAX_DESCRIBED_QUERIES, with
        about MAX_DESCRIBED_SCORES scores, but 64 queries at least. Around a ring the candidates are this rank's alone.

        temperature         the current one
        uncounted           number of queries without a positive
        top1                share of queries of which a positive scores higher than every negative
        positive_score      mean score (margin(similarity) / temperature) of the positives; negative_score likewise
        """
        query, part = described(query, candidates)
        scoring = self.scoring()._replace(correction=False)
        scores = score_matrix(query, part, scoring)
        values, positive, valid = scores
        negative = valid & ~positive
        some = positive.any(dim=1) & negative.any(dim=1)  # [B]
        lowest = torch.finfo(values.dtype).min
        best_negative = values.masked_fill(~negative, lowest).amax(dim=1)
        metrics = {
            # a tie counts against the positive: a collapsed encoder, whose scores are all equal, has top1 = 0
            "top1": (values.masked_fill(~positive, lowest).amax(dim=1) > best_negative).to(values.dtype),
            "positive_score": masked_mean(values, positive),
            "negative_score": masked_mean(values, negative),
        }
        if part.log_q is not None or part.positives_log_q is not None:
            del values, scores
            scores = self.scores(query, part)
        metrics |= self.describe_rows(scores)
        means = {name: torch.where(some, row, 0).sum() / some.sum() for name, row in metrics.items()}  # 0 / 0 is NaN
        return means | {"temperature": self.temperature(), "uncounted": (~positive.any(dim=1)).sum()}

    def describe_rows(self, scores: Scores) -> dict[str, Tensor]:
        """More metrics of each query, [B], by name."""
        return {}


def described(query: Tensor, candidates: Candidates) -> tuple[Tensor, Candidates]:
    """The first queries and their candidates: so few that a logged step costs little more than any other step."""
    few = max(64, MAX_DESCRIBED_SCORES // max(1, len(candidates)))
    rows = slice(0, min(len(query), MAX_DESCRIBED_QUERIES, few))
    return query[rows], candidates.tile(rows, slice(None))
