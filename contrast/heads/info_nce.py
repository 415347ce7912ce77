"""The InfoNCE head: the softmax loss over candidates, with what its family changes in the denominator.

B queries, C candidates.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contrast.candidates import Candidates
from contrast.errors import InputError
from contrast.heads.head import Head, described
from contrast.heads.scalars import Temperature
from contrast.losses.band import Output
from contrast.losses.plan import Scoring
from contrast.losses.scores import Scores
from contrast.losses.soft_targets import soft_target_rows, teacher_targets
from contrast.losses.softmax import debiased, loss_of, positive_weighting, softmax_loss, statistics


class InfoNCE(Head):
    """Softmax over the candidates of similarity / temperature (van den Oord et al. 2018; Chen et al. 2020).

    temperature      a positive number, or a `Temperature` (`Learnable`, `Cosine`)
    cosine           cosine similarity; False: dot product
    margin           taken from the positives: `CosFace`, `ArcFace`, `LSoftmax`
    decoupled        positives are left out of the denominator: DCL (Yeh et al. 2022, eq. 6)
    positive_sigma   DCLW's sigma (same, eq. 7), usually 0.5: a query's positive score is weighted by
                     2 - exp(cos / sigma) / mean over queries, cos without margin and log_q; the weight is a constant.
                     None: 1
    class_prior      tau+ of the debiased loss (Chuang et al. 2020, eq. 8): share of the negatives that are false
    hardness         beta of hard-negative weighting (Robinson et al. 2021, eq. 4); with class_prior it is theirs
    label_smoothing  share of the target that is spread over all candidates that count
    tiled            as in `Head`

    Candidates that carry `log_q` are scored `similarity / temperature - log_q`. Where candidates carry a `teacher`, its
    distribution is the target in place of the positives (`contrast.losses.soft_targets`).
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
        if candidates.teacher is not None:
            return super().forward(query, candidates)  # by `row_losses`
        if candidates.log_q is not None and (self.class_prior or self.hardness):
            raise InputError("class_prior and hardness reweight a batch's negatives, not draws that carry log_q")
        temperature, weighted = self.temperature(), self.positive_sigma is not None
        scoring = Scoring(temperature, self.cosine, self.margin, tiled=self.tiled)
        stats = statistics(query, candidates, scoring, self.hardness, self.label_smoothing > 0, weighted)
        if self.class_prior:
            stats = debiased(stats, self.class_prior, -1 / temperature)
        loss = loss_of(stats, self.decoupled, self.label_smoothing)
        if self.positive_sigma is not None:
            loss = loss + positive_weighting(stats, self.positive_sigma)
        return loss, stats.num_positives > 0

    def row_losses(self, query: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """With a teacher's distribution as the target; every query that has a candidate counts."""
        if self.decoupled or self.class_prior or self.hardness or self.label_smoothing or self.margin is not None:
            raise InputError(
                "a teacher's targets go with plain scores: no margin, decoupled, class_prior, hardness, label_smoothing"
            )
        return soft_target_rows(query, candidates, self.scores(query, candidates))

    @torch.no_grad()
    def describe(self, query: Tensor, candidates: Candidates) -> dict[str, Tensor]:
        """As `Head.describe`; with a teacher two metrics over the first queries in place of those of positives.

        agreement       share of queries that give the highest score to the same candidate as the teacher
        target_entropy  mean entropy of the targets, in nats: 0 one-hot, log of the number of candidates uniform
        """
        if candidates.teacher is None:
            return super().describe(query, candidates)
        query, part = described(query, candidates)
        values, _, valid = self.scores(query, part)
        target = teacher_targets(part, valid)
        best = values.masked_fill(~valid, torch.finfo(values.dtype).min).argmax(dim=1)
        some = valid.any(dim=1)
        rows = {
            "agreement": (best == target.argmax(dim=1)).double(),
            "target_entropy": torch.special.entr(target).sum(1),
        }
        means = {name: torch.where(some, row, 0).sum() / some.sum() for name, row in rows.items()}  # 0 / 0 is NaN
        return means | {"temperature": self.temperature(), "uncounted": (~some).sum()}

    def has_slopes(self) -> bool:
        """For the plain softmax of dot products."""
        options = self.decoupled or self.class_prior or self.hardness or self.label_smoothing
        return type(self).forward is InfoNCE.forward and not (self.cosine or self.margin or options)

    def slopes(self, output: Output, near: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        """One log-sum-exp of the shared columns for each query: -(1 - p) of a pair, whose 1 - p they divide."""
        highest = shared.amax(dim=2, keepdim=True)
        share = shared.sub_(highest).exp_()  # [N, L, M]
        total = share.sum(dim=2, keepdim=True)
        rest = output.near.total  # [n, G, R], 1 - p of the pairs
        if not output.holds_targets:
            log_total = output.band.windows((highest + total.log()).view(-1, 1)).mT  # [n, 1, R]
            rest = (log_total - near).sigmoid_().mul_(rest)
        mass = output.band.collect(rest.sum(dim=1)[:, :, None])  # [S, 1]
        return -rest, share.mul_(mass.view(total.shape) / total)

    def total_loss(self, output: Output, near: Tensor, shared: Tensor) -> Tensor:
        log_total = output.band.windows(shared.logsumexp(dim=2).view(-1, 1)).mT  # [n, 1, R]
        loss = log_total - near if output.holds_targets else F.softplus(log_total - near)
        return (loss * output.near.total).sum()

    def describe_rows(self, scores: Scores) -> dict[str, Tensor]:
        """bound: log(number of valid candidates) - InfoNCE loss.

        Its mean is the bound on mutual information in nats where there is one positive (Poole et al. 2019, eq. 10).
        """
        loss = softmax_loss(*scores)
        return {"bound": scores.valid.sum(dim=1).clamp(min=1).to(loss.dtype).log() - loss}
