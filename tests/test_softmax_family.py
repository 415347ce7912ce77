"""The options of InfoNCE against their authors' formulas in naive loops, its identities, and what it converges to.

In float64 and with gradients, save where float32 itself is tested.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contrast.candidates import ABSENT, Candidates
from contrast.errors import InputError
from contrast.heads import NCE, ArcFace, CosFace, InfoNCE, Learnable, LearnedBias, LSoftmax, softmax_loss
from contrast.heads.scalars import Temperature
from contrast.negatives import Table
from contrast.samplers import Poisson

Pairs = list[tuple[Tensor, Tensor]]  # of each counted query the cosines of its positives and of its negatives

# every option, and the other loss
HEADS: dict[str, Callable[[float | Temperature], InfoNCE | NCE]] = {
    "plain": lambda t: InfoNCE(t),
    "decoupled": lambda t: InfoNCE(t, decoupled=True),
    "dclw": lambda t: InfoNCE(t, decoupled=True, positive_sigma=0.5),
    "debiased": lambda t: InfoNCE(t, class_prior=0.1),
    "hard": lambda t: InfoNCE(t, class_prior=0.1, hardness=1.0),
    "smoothed": lambda t: InfoNCE(t, label_smoothing=0.1),
    "cosface": lambda t: InfoNCE(t, margin=CosFace()),
    "arcface": lambda t: InfoNCE(t, margin=ArcFace()),
    "l_softmax": lambda t: InfoNCE(t, margin=LSoftmax(4)),
    "nce": lambda t: NCE(t, bias=LearnedBias(-10.0)),
}
ONE, SEVERAL, ALL = [0, 1, 2, 3, 0, 1, 2, 3], [2, 2, 2, 5, 5, 7, 2, 9], [4] * 8  # 7 and 9 have no positive


def rows(n: int, d: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def among_themselves(head: torch.nn.Module, z: Tensor, ids: list[int]) -> tuple[Tensor, Tensor]:
    number = torch.tensor(ids)
    return head(z, Candidates(z, number, number, self_index=torch.arange(len(z))))


def mean(losses: Tensor, counted: Tensor) -> Tensor:
    return losses[counted].mean()


def cosines(z: Tensor, ids: list[int]) -> Pairs:
    def cos(i: int, j: int) -> Tensor:
        return (z[i] @ z[j]) / (z[i].norm() * z[j].norm())

    found = []
    for i in range(len(z)):
        positives = [cos(i, j) for j in range(len(z)) if j != i and ids[j] == ids[i]]
        negatives = [cos(i, j) for j in range(len(z)) if ids[j] != ids[i]]
        if positives:
            found.append((torch.stack(positives), torch.stack(negatives) if negatives else z.new_zeros(0)))
    return found


def assert_same(loss: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(loss, expected)
    for x in inputs:
        got, wanted = (torch.autograd.grad(y, x, retain_graph=True)[0] for y in (loss, expected))
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("ids", [ONE, SEVERAL, ALL])
def test_sup_con_with_any_number_of_positives(ids: list[int]) -> None:
    """Khosla et al. 2020, eq. 2."""
    z, t = rows(8), 0.2
    losses = []
    for pos, neg in cosines(z, ids):
        denominator = (torch.cat([pos, neg]) / t).exp().sum()
        losses.append(-sum(torch.log((p / t).exp() / denominator) for p in pos) / len(pos))
    assert_same(mean(*among_themselves(InfoNCE(t).double(), z, ids)), sum(losses) / len(losses), z)


@pytest.mark.parametrize("ids", [ONE, SEVERAL])
def test_dcl_leaves_the_positives_out_of_the_denominator(ids: list[int]) -> None:
    """Yeh et al. 2022, eq. 6."""
    z, t = rows(8), 0.2
    losses = [-pos.mean() / t + (neg / t).exp().sum().log() for pos, neg in cosines(z, ids)]
    assert_same(mean(*among_themselves(InfoNCE(t, decoupled=True).double(), z, ids)), sum(losses) / len(losses), z)


@pytest.mark.parametrize("sigma", [0.5, 0.002])
def test_dclw_weighs_the_positive_by_a_constant(sigma: float) -> None:
    """Yeh et al. 2022, eq. 7; exp(1 / 0.002) is beyond float32."""
    t, count = 0.2, 4
    z = rows(2 * count)
    pairs = cosines(z, ONE)
    with torch.no_grad():
        total = sum((pos[0] / sigma).exp() for pos, _ in pairs)
        weights = [2 - 2 * count * (pos[0] / sigma).exp() / total for pos, _ in pairs]
    losses = [-w * pos[0] / t + (neg / t).exp().sum().log() for w, (pos, neg) in zip(weights, pairs, strict=True)]
    head = InfoNCE(t, decoupled=True, positive_sigma=sigma)
    assert_same(mean(*among_themselves(head.double(), z, ONE)), sum(losses) / len(losses), z)
    single, _ = among_themselves(head.float(), z.float(), ONE)
    torch.testing.assert_close(single.mean(), (sum(losses) / len(losses)).float(), rtol=1e-3, atol=1e-3)


def test_without_a_negative_the_decoupled_losses_are_zero() -> None:
    for head in (InfoNCE(0.2, decoupled=True), InfoNCE(0.2, decoupled=True, positive_sigma=0.5)):
        z = rows(8)
        losses, counted = among_themselves(head.double(), z, ALL)
        assert counted.all()
        assert losses.tolist() == [0] * 8
        assert torch.autograd.grad(losses.sum(), z)[0].abs().max() == 0


@pytest.mark.parametrize("hardness", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("class_prior", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("ids", [ONE, SEVERAL])
def test_debiased_and_hard_negatives(ids: list[int], class_prior: float, hardness: float) -> None:
    """The authors' code: Chuang et al. 2020 (hardness 0), Robinson et al. 2021. Of several positives the mean."""
    t, found = 0.5, set()
    for seed in (1, 4, 7, 8):  # with 0.6 on all three sides
        z, losses = rows(8, 3, seed=seed), []
        for pos_cosines, neg_cosines in cosines(z, ids):
            pos, neg, n = (pos_cosines / t).exp(), (neg_cosines / t).exp(), len(neg_cosines)
            imp = (hardness * neg.log()).exp()
            reweighted = (imp * neg).sum() / imp.mean()
            ng, floor = (-class_prior * n * pos.mean() + reweighted) / (1 - class_prior), n * math.exp(-1 / t)
            found.add("not positive" if ng <= 0 else "below the floor" if ng < floor else "above")
            ng = ng.clamp(min=floor) if class_prior else ng
            losses.append((-torch.log(pos / (pos.sum() + ng))).mean())
        head = InfoNCE(t, class_prior=class_prior, hardness=hardness)
        loss, expected = mean(*among_themselves(head.double(), z, ids)), sum(losses) / len(losses)
        assert_same(loss, expected, z)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)  # log N is a float64 too
    assert class_prior < 0.6 or found == {"not positive", "below the floor", "above"}


@pytest.mark.parametrize("epsilon", [0.1, 0.9])
def test_label_smoothing_over_a_whole_table_is_torchs(epsilon: float) -> None:
    query, table, target = rows(6, seed=1), rows(9, seed=2), torch.tensor([0, 8, 3, 3, 1, 7])
    head = InfoNCE(0.7, cosine=False, label_smoothing=epsilon).double()
    expected = F.cross_entropy(query @ table.T / 0.7, target, label_smoothing=epsilon)
    assert_same(head(query, Candidates(table, target, torch.arange(9)))[0].mean(), expected, query, table)


@pytest.mark.parametrize("epsilon", [0.1, 0.9])
def test_label_smoothing_with_several_positives(epsilon: float) -> None:
    """The target is uniform over the positives, but for a share that is uniform over all."""
    z, t, losses = rows(8), 0.2, []
    for pos, neg in cosines(z, SEVERAL):
        log_p = (torch.cat([pos, neg]) / t).log_softmax(dim=0)
        target = torch.full_like(log_p, epsilon / len(log_p))
        target[: len(pos)] += (1 - epsilon) / len(pos)
        losses.append(-(target * log_p).sum())
    head = InfoNCE(t, label_smoothing=epsilon)
    assert_same(mean(*among_themselves(head.double(), z, SEVERAL)), sum(losses) / len(losses), z)


def test_groups_leave_out_what_shares_a_group_but_not_the_positives() -> None:
    z, ids, groups, t = rows(8), ONE, [0, 0, 1, 2, 0, 0, 1, 1], 0.3
    losses, binary = [], []
    for i in range(8):
        kept = [j for j in range(8) if j != i and (ids[j] == ids[i] or groups[j] != groups[i])]
        scores = torch.stack([z[i] @ z[j] / (z[i].norm() * z[j].norm()) / t for j in kept])
        positive = kept.index((i + 4) % 8)
        losses.append(-scores[positive] + scores.exp().sum().log())
        binary.append(F.softplus(scores).sum() - scores[positive])
    number, group = torch.tensor(ids), torch.tensor(groups)
    candidates = Candidates(z, number, number, self_index=torch.arange(8), excluded_groups=group, query_groups=group)
    assert_same(InfoNCE(t).double()(z, candidates)[0].mean(), sum(losses) / 8, z)
    assert_same(NCE(t).double()(z, candidates)[0].mean(), sum(binary) / 8, z)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("rule", ["ids", "groups"])
def test_what_is_absent_counts_for_nothing(name: str, rule: str) -> None:
    query, padded = rows(3, seed=1), rows(3 * 6, seed=2)
    vectors = padded.view(3, 6, 5)
    query_ids, ids = torch.tensor([1, 2, 3]), torch.tensor([[1, 4, 5, 6, 7, 8], [9, 2, 2, 4, 5, 6], [3, 0, 4, 4, 6, 7]])
    there = torch.arange(6) < torch.tensor([[3], [6], [5]])
    head = HEADS[name](0.2).double()
    if name == "dclw":  # its weights are relative to the batch
        head.positive_sigma = 1e9
    if rule == "ids":
        whole, _ = head(query, Candidates(vectors, query_ids, ids.where(there, ABSENT)))
    else:
        groups = torch.zeros_like(ids).where(there, ABSENT)
        whole, _ = head(query, Candidates(vectors, query_ids, ids, excluded_groups=groups, query_groups=query_ids))
    each = [
        head(query[i : i + 1], Candidates(vectors[i][there[i]], query_ids[i : i + 1], ids[i][there[i]]))[0]
        for i in range(3)
    ]
    assert_same(whole.sum(), torch.cat(each).sum(), query, padded)
    assert torch.autograd.grad(whole.sum(), padded)[0].view(3, 6, 5)[~there].abs().max() == 0


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("name", HEADS)
def test_answers_beside_shared_candidates_are_one_set_for_each_query(name: str, cosine: bool) -> None:
    if name in ("debiased", "hard") and not cosine:
        with pytest.raises(InputError, match="needs cosine similarity"):
            InfoNCE(0.2, cosine=False, class_prior=0.1)
        return
    query, shared, answers = rows(3, seed=1), rows(6, seed=2), rows(3 * 2, seed=3)
    own = answers.view(3, 2, 5)
    log_q, own_log_q = rows(6, 1, seed=4).detach()[:, 0], rows(3, 2, seed=5).detach()
    query_ids, ids = torch.tensor([1, 2, 3]), torch.tensor([0, 1, 0, 3, 3, 0])
    head = HEADS[name](0.4).double()
    head.cosine = cosine
    drawn = Candidates(shared, query_ids, ids, log_q=log_q, positives=own, positives_log_q=own_log_q)
    together = Candidates(
        torch.cat([own, shared.expand(3, 6, 5)], dim=1),
        query_ids,
        torch.cat([query_ids[:, None].expand(3, 2), ids.expand(3, 6)], dim=1),
        log_q=torch.cat([own_log_q, log_q.expand(3, 6)], dim=1),
    )
    if name in ("debiased", "hard"):
        with pytest.raises(InputError, match="not draws that carry log_q"):
            head(query, drawn)
        drawn, together = replace(drawn, log_q=None, positives_log_q=None), replace(together, log_q=None)
    split, counted = head(query, drawn)
    assert counted.all()
    assert_same(split.sum(), head(query, together)[0].sum(), query, shared, answers)


def test_log_q_of_either_side_alone() -> None:
    query, shared, answers = rows(3, seed=1), rows(6, seed=2), rows(3, seed=3)
    log_q, own_log_q, t = rows(6, 1, seed=4).detach()[:, 0], rows(3, 1, seed=5).detach(), 0.5
    for of_shared, of_answers in itertools.product([True, False], repeat=2):
        expected = query.new_zeros(())
        for i in range(3):
            positive = query[i] @ answers[i] / t - (own_log_q[i, 0] if of_answers else 0)
            others = [query[i] @ shared[j] / t - (log_q[j] if of_shared else 0) for j in range(6)]
            expected = expected - positive + torch.stack([positive, *others]).exp().sum().log()
        candidates = Candidates(
            shared,
            torch.arange(3),
            log_q=log_q if of_shared else None,
            positives=answers[:, None],
            positives_log_q=own_log_q if of_answers else None,
        )
        assert_same(InfoNCE(t, cosine=False).double()(query, candidates)[0].sum(), expected, query, shared, answers)


@pytest.mark.parametrize("name", ["plain", "nce"])
def test_a_positive_that_noise_never_draws_has_no_loss(name: str) -> None:
    query, answers = rows(2, seed=1), rows(2, seed=2)
    log_q = torch.tensor([[0.0], [-math.inf]], dtype=torch.float64)
    head = {"plain": InfoNCE, "nce": NCE}[name](0.5).double()
    losses, _ = head(
        query, Candidates(rows(1, seed=3), torch.arange(2), positives=answers[:, None], positives_log_q=log_q)
    )
    noise = 0.0 if name == "plain" else F.softplus(2 * F.cosine_similarity(query[1], rows(1, seed=3)[0], dim=0)).item()
    assert losses[0].item() > 0.01
    assert losses[1].item() == pytest.approx(noise, abs=1e-12)
    assert torch.autograd.grad(losses[1], answers)[0].abs().max() < 1e-12


SITUATIONS = ["near duplicates", "zeros", "largest halves", "no positive", "all one id", "one is zero"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("name", HEADS)
def test_stress_stays_finite(name: str, situation: str, dtype: torch.dtype) -> None:
    z, ids = rows(8).detach(), ONE
    if situation == "near duplicates":
        z[4:] = z[:4] + 1e-7 * z[4:]
    elif situation == "zeros":
        z.zero_()
    elif situation == "one is zero":
        z[1] = 0
    elif situation == "largest halves":
        z *= 65504 / z.norm(dim=1, keepdim=True)
    else:
        ids = list(range(8)) if situation == "no positive" else ALL
    x = z.to(dtype).requires_grad_()
    head = HEADS[name](Learnable(0.005, minimum=0.001))
    with torch.autocast("cpu", torch.bfloat16):
        losses, counted = among_themselves(head, x, ids)
    losses.mean().backward()
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()
    assert counted.all() != (situation == "no positive")
    for leaf in (x, *head.parameters()):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize(("temperature", "tolerance"), [(0.5, 2e-5), (0.05, 2e-5), (0.005, 4e-4)])
@pytest.mark.parametrize("apart", [0.3, 1.5])  # nearly all queries are solved, and half of them are
@pytest.mark.parametrize("name", HEADS)
def test_float32_gradients_are_those_of_float64(name: str, apart: float, temperature: float, tolerance: float) -> None:
    z = rows(128, 32).detach()
    z[64:] = z[:64] + apart * z[64:]
    grads = []
    for dtype in (torch.float32, torch.float64):
        x = z.float().to(dtype).requires_grad_()
        loss = mean(*among_themselves(HEADS[name](temperature).to(dtype), x, [*range(64), *range(64)]))
        grads.append(torch.autograd.grad(loss, x)[0].double())
    # a gradient below what float32 holds may be 0
    assert (grads[0] - grads[1]).norm() < tolerance * grads[1].norm() + torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("lead", [5.0, 20.0, 80.0])
def test_the_gradient_of_a_solved_query_keeps_its_digits(lead: float) -> None:
    """Of two equal negatives that trail by `lead`: -p, p / 2, p / 2 with p = 2 / (2 + exp(lead))."""
    scores = torch.tensor([[lead, 0.0, 0.0]], requires_grad=True)
    positive = torch.tensor([[True, False, False]])
    softmax_loss(scores, positive, torch.ones_like(positive)).sum().backward()
    p = 2 / (2 + math.exp(lead))
    assert scores.grad is not None
    assert scores.grad[0].tolist() == pytest.approx([-p, p / 2, p / 2], rel=1e-5, abs=0)


@pytest.mark.parametrize("name", [name for name in HEADS if name != "plain"])
def test_gradient_with_respect_to_temperature_is_the_finite_difference(name: str) -> None:
    z, step = rows(8), 1e-6

    def loss_at(temperature: float) -> tuple[Tensor, torch.nn.Parameter]:
        learnable = Learnable(0.2).double()
        with torch.no_grad():
            learnable.log_temperature.fill_(math.log(temperature))
        return mean(*among_themselves(HEADS[name](learnable).double(), z, ONE)), learnable.log_temperature

    loss, log_temperature = loss_at(0.2)
    (slope,) = torch.autograd.grad(loss, log_temperature)  # d / d log T = T d / dT
    around = [loss_at(0.2 + sign * step)[0].item() for sign in (1, -1)]
    assert slope.item() / 0.2 == pytest.approx((around[0] - around[1]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize(
    ("temperature", "loss", "gradient"),
    [
        (1.0, 0.440190, [-0.356086, 0.236883, 0.087144, 0.032059]),
        (0.5, 0.145078, [-0.270090, 0.234118, 0.031684, 0.004288]),
    ],
)
def test_full_softmax_by_hand(temperature: float, loss: float, gradient: list[float]) -> None:
    """Logits 2, 1, 0, -1, class 0: log sum exp(z / T) - z_0 / T and its gradient."""
    z = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    positive = torch.tensor([[True, False, False, False]])
    got = softmax_loss(z / temperature, positive, torch.ones_like(positive)).sum()
    assert got.item() == pytest.approx(loss, abs=5e-7)
    assert torch.autograd.grad(got, z)[0][0].tolist() == pytest.approx(gradient, abs=5e-7)


def test_an_accidental_hit_by_hand() -> None:
    """Scores 2, 1, 0, -1, noise .4, .3, .2, .1, class 0, draws 1, 0, 2: the hit kept, and left out as of its group."""
    scores, log_q = torch.tensor([2.0, 1.0, 0.0, -1.0]).double(), torch.tensor([0.4, 0.3, 0.2, 0.1]).double().log()
    drawn, target = torch.tensor([1, 0, 2]), torch.tensor([0])
    kept = {"positives": scores[target].view(1, 1, 1), "positives_log_q": log_q[target][:, None], "log_q": log_q[drawn]}
    removed = kept | {"excluded_groups": drawn, "query_groups": target}
    for rules, expected in ((kept, 1.015657), (removed, 0.565982)):
        candidates = Candidates(scores[drawn][:, None], target, **rules)
        loss, _ = InfoNCE(1.0, cosine=False).double()(scores.new_ones(1, 1), candidates)
        assert loss.item() == pytest.approx(expected, abs=5e-7)


def test_a_table_of_two_classes_is_logistic_regression() -> None:
    query, table, target = rows(6, seed=1), rows(2, seed=2), torch.tensor([0, 1, 1, 0, 1, 0])
    losses, _ = InfoNCE(1.0, cosine=False).double()(query, Candidates(table, target, torch.arange(2)))
    expected = F.binary_cross_entropy_with_logits(query @ (table[1] - table[0]), target.double())
    assert_same(losses.mean(), expected, query, table)


def test_a_sample_of_every_class_once_is_the_full_softmax() -> None:
    query, target = rows(6, seed=1), torch.tensor([0, 8, 3, 3, 1, 7])
    table = Table(9, 5, sampler=Poisson(torch.ones(9)), std=1.0).double()
    ((asking, candidates),) = table(query[None], None, target)
    losses, _ = InfoNCE(1.0, cosine=False).double()(asking, candidates)
    assert_same(losses.mean(), F.cross_entropy(query @ table.vectors.T, target), query, table.vectors)


P = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)  # of the data, over 4 classes
Q = torch.tensor([0.7, 0.1, 0.1, 0.1], dtype=torch.float64)  # of the noise
PI = torch.tensor([0.25, 0.5, 0.75, 0.5], dtype=torch.float64)  # inclusion probabilities, of 2 classes on average


class Drawn:
    """A sampler whose next draws are known."""

    size = 4

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        return self.ids

    def log_prob(self, ids: Tensor) -> Tensor:
        return Q.log()[ids]


def expected_loss(pairing: str, scores: Tensor) -> Tensor:
    """The sampled softmax of class scores [4], over every datum and every sample with its probability."""
    table = Table(4, 1, sampler=Poisson(PI) if pairing == "poisson" else Drawn(torch.zeros(2)), draws=2).double()
    del table.vectors
    table.vectors = scores[:, None]  # in place of a parameter of its own
    everyone, head, total = torch.arange(4), InfoNCE(1.0, cosine=False).double(), scores.new_zeros(())
    poisson = pairing == "poisson"
    for sample in itertools.product([False, True], repeat=4) if poisson else itertools.product(range(4), repeat=2):
        if poisson:
            drawn = torch.tensor(sample).nonzero()[:, 0]
            chance = PI.where(torch.tensor(sample), 1 - PI).prod()
            table.sampler.draw = lambda generator, drawn=drawn: drawn
        else:
            drawn = torch.tensor(sample)
            chance = Q[drawn].prod()
            table.sampler = Drawn(drawn)
        ((query, candidates),) = table(scores.new_ones(1, 4, 1), None, everyone)
        if pairing == "positive uncorrected":
            candidates = replace(candidates, positives_log_q=None)
        if pairing == "hits removed":
            candidates = replace(candidates, excluded_groups=drawn, query_groups=everyone)
        total = total + chance * (P * head(query, candidates)[0]).sum()
    return total


@pytest.mark.parametrize("pairing", ["with replacement", "poisson"])
def test_the_tables_pairings_have_their_optimum_at_the_distribution_of_the_data(pairing: str) -> None:
    at = (P.log() + 3).requires_grad_()
    assert torch.autograd.grad(expected_loss(pairing, at), at)[0].abs().max() < 1e-7
    scores = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [scores], max_iter=100, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = expected_loss(pairing, scores)
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(scores.detach().softmax(dim=0), P, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pairing", ["positive uncorrected", "hits removed"])
def test_other_pairings_are_biased(pairing: str) -> None:
    at = P.log().requires_grad_()
    assert torch.autograd.grad(expected_loss(pairing, at), at)[0].abs().max() > 0.02


@pytest.mark.parametrize(("rho", "count", "slack"), [(0.5, 256, 0.03), (0.99, 32, 0.03)])
def test_log_k_minus_the_loss_bounds_mutual_information(rho: float, count: int, slack: float) -> None:
    """Correlated Gaussians in 4 dimensions: I = -2 log(1 - rho^2), with the critic log p(y | x) / p(y)."""
    generator = torch.Generator().manual_seed(0)
    information, head, bounds = -2 * math.log(1 - rho**2), InfoNCE(1.0, cosine=False).double(), []
    for _ in range(40):
        x, noise = torch.randn(2, count, 4, dtype=torch.float64, generator=generator)
        y = rho * x + math.sqrt(1 - rho**2) * noise
        # -(rho^2 x^2 + rho^2 y^2 - 2 rho x y) / (2 - 2 rho^2) + I, as a dot product
        ones, half = x.new_ones(count, 1), -(rho**2) / (2 - 2 * rho**2)
        query = torch.cat([x, half * x.square().sum(1, keepdim=True) + information, ones], dim=1)
        key = torch.cat([rho / (1 - rho**2) * y, ones, half * y.square().sum(1, keepdim=True)], dim=1)
        told = head.describe(query, Candidates(key, torch.arange(count), torch.arange(count)))
        bounds.append(told["bound"].item())
    bound = sum(bounds) / len(bounds)
    assert max(bounds) <= math.log(count)
    assert bound < information + slack
    assert bound > min(information, math.log(count)) - slack
