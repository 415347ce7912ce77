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
from contrast.losses.band import Output, PairLoss
from contrast.losses.plan import Scoring
from contrast.losses.scores import Scores
from contrast.losses.soft_targets import soft_target_rows, teacher_targets
from contrast.losses.softmax import softmax_loss, softmax_losses


class InfoNCE(Head):
    """Softmax over the candidates of similarity / temperature (van den Oord et al. 2018; Chen et al. 2020).

    temperature      a positive number, or a `Temperature` (`Learnable`, `Cosine`)
    cosine           cosine similarity; False: dot product
    margin           applied to the cosine of the positives: `CosFace`, `ArcFace`, `LSoftmax`; or None
    decoupled        positives are left out of the denominator: DCL (Yeh et al. 2022, eq. 6)
    positive_sigma   DCLW's sigma (same, eq. 7), usually 0.5: a query's positive score is weighted by
                     2 - exp(cos / sigma) / mean over queries, cos without margin and log_q; the weight is a constant.
                     None: 1
    class_prior      tau+ of the debiased loss (Chuang et al. 2020, eq. 8): share of the negatives that are false
    hardness         beta of hard-negative weighting (Robinson et al. 2021, eq. 4). Their full loss also has class_prior
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
        scoring = Scoring(self.temperature(), self.cosine, self.margin, tiled=self.tiled)
        options = (self.decoupled, self.positive_sigma, self.class_prior, self.hardness, self.label_smoothing)
        return softmax_losses(query, candidates, scoring, *options)

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
        target_entropy  mean entropy of the targets, in nats: 0 for a one-hot target, and log of the number of
                        candidates for a uniform one
        """
        if candidates.teacher is None:
            return super().describe(query, candidates)
        query, part = described(query, candidates)
        values, _, valid = self.scores(query, part)
        target = teacher_targets(part, valid)
        best = values.masked_fill(~valid, torch.finfo(values.dtype).min).argmax(dim=1)
        some = valid.any(dim=1)
        rows = {
            "agreement": (best == target.argmax(dim=1)).to(values.dtype),
            "target_entropy": torch.special.entr(target).sum(1),
        }
        means = {name: torch.where(some, row, 0).sum() / some.sum() for name, row in rows.items()}  # 0 / 0 is NaN
        return means | {"temperature": self.temperature(), "uncounted": (~some).sum()}

    def has_slopes(self) -> bool:
        """True for the plain softmax of dot products."""
        options = self.decoupled or self.class_prior or self.hardness or self.label_smoothing
        return type(self).forward is InfoNCE.forward and not (self.cosine or self.margin or options)

    def pair_loss(self, draws: int) -> PairLoss | None:
        if not self.has_slopes() or any(each.requires_grad for each in self.parameters()):
            return None
        return PairLoss(True, 1 / float(self.temperature()), 0.0, True, 1.0)

    def slopes(self, output: Output, near: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        """With p the softmax probability of a pair's target, the derivative by the pair's own score is -(1 - p).

        The shared columns divide 1 - p in proportion to exp(score), so one log-sum-exp of them per query is enough.
        """
        highest = shared.amax(dim=2, keepdim=True)
        share = shared.sub_(highest).exp_()  # [N, L, M]
        total = share.sum(dim=2, keepdim=True)
        rest = output.near.total  # [n, G, R], 1 - p of the pairs
        if not output.holds_targets:
            log_total = output.band.windows((highest + total.log()).view(-1, 1)).mT  # [n, 1, R]
            rest = (log_total - near).sigmoid_().mul_(rest)
        mass = output.band.collect(rest.sum(dim=1)[:, :, None])  # [S, 1]
        return -rest, share.mul_(mass.view(total.shape) / total)

    def shared_pairs(self, output: Output, slopes: Tensor) -> Tensor:
        """For all classes 4 times the probability of a row in all pairs, the sum of its slopes; for draws as usual.

        The second derivative of a softmax loss by a score is p (1 - p), at most p, and that of a logistic loss is at
        most 1 / 4. Of all classes a few may have most of p; with 1 / V for each, the first steps overshot.
        """
        return 4 * slopes.sum(dim=1) if output.holds_targets else super().shared_pairs(output, slopes)

    def counts_of_all_classes(self, query: Tensor, candidates: Candidates, counts: Tensor) -> Tensor:
        scores = self.scores(query, candidates)
        counts = 4 * scores.values.masked_fill(~scores.valid, -torch.inf).softmax(dim=1)
        counts[:, 0] += 1  # the target
        return counts

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
