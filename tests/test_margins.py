"""Margins against their definitions by angle, in loops in float64, with gradients; by hand; and at the edges."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contrast.candidates import Candidates
from contrast.errors import InputError
from contrast.heads import NCE, ArcFace, CosFace, InfoNCE, LSoftmax
from contrast.negatives import Table

Angular = Callable[[Tensor], Tensor]  # what becomes of the cosine of an angle


def cosface(m: float) -> Angular:
    """Wang et al. 2018, eq. 4."""
    return lambda theta: theta.cos() - m


def arcface(m: float) -> Angular:
    """Deng et al. 2019, eq. 3, and beyond pi - m as in the authors' code."""
    return lambda theta: (theta + m).cos() if theta.item() < math.pi - m else theta.cos() - m * math.sin(m)


def l_softmax(m: int, annealing: float = 0.0) -> Angular:
    """Liu et al. 2016, eq. 5."""

    def psi(theta: Tensor) -> Tensor:
        k = min(int(theta.item() * m / math.pi), m - 1)
        return (annealing * theta.cos() + (-1) ** k * (m * theta).cos() - 2 * k) / (1 + annealing)

    return psi


MARGINS: dict[str, tuple[nn.Module, Angular]] = {
    "cosface": (CosFace(0.35), cosface(0.35)),
    "arcface": (ArcFace(0.5), arcface(0.5)),
    "arcface, wide": (ArcFace(2.0), arcface(2.0)),
    "l_softmax 1": (LSoftmax(1), l_softmax(1)),
    "l_softmax 2": (LSoftmax(2), l_softmax(2)),
    "l_softmax 3": (LSoftmax(3), l_softmax(3)),
    "l_softmax 4": (LSoftmax(4), l_softmax(4)),
    "l_softmax 4, annealed": (LSoftmax(4, annealing=5.0), l_softmax(4, 5.0)),
}


def rows(n: int, d: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def assert_same(value: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(value, expected)
    for x in inputs:
        got, wanted = (torch.autograd.grad(y, x, retain_graph=True)[0] for y in (value, expected))
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", MARGINS)
def test_margins_are_their_definitions_at_every_angle(name: str) -> None:
    margin, definition = MARGINS[name]
    angles = torch.linspace(0.01, math.pi - 0.01, 400, dtype=torch.float64)
    cosine = angles.cos().requires_grad_()
    expected = torch.stack([definition(c.acos()) for c in cosine])
    assert_same(margin(cosine).sum(), expected.sum(), cosine)
    torch.testing.assert_close(margin(cosine), expected)


@pytest.mark.parametrize("name", MARGINS)
def test_a_margin_never_helps_and_falls_with_the_angle(name: str) -> None:
    margin, _ = MARGINS[name]
    cosine = torch.linspace(0, math.pi, 2001, dtype=torch.float64).cos()
    value = margin(cosine)
    assert (value <= cosine + 1e-12).all()
    assert (value.diff() < 1e-7).all()  # ArcFace's sine is kept from 0, over a last 3e-4 of the angle


def test_margins_by_hand() -> None:
    """Cosines .7, .2, -.1, class 0, scale 30; L-Softmax with |w| |x| = 10."""
    cosine = torch.tensor([0.7, 0.2, -0.1], dtype=torch.float64)
    assert ArcFace(0.5)(cosine)[0].item() == pytest.approx(0.271929, abs=5e-7)
    psi = [LSoftmax(m)(cosine)[i].item() for i in (0, 2) for m in (2, 4)]
    assert psi == pytest.approx([-0.02, -1.0008, -1.02, -3.0792], abs=5e-7)
    assert LSoftmax(4, annealing=5.0)(cosine)[0].item() == pytest.approx(0.416533, abs=5e-7)  # (5 x .7 - 1.0008) / 6
    for margin, scale, expected in ((CosFace(0.35), 30, 0.011049), (ArcFace(0.5), 30, 0.109378)):
        table = torch.stack([cosine, (1 - cosine.square()).sqrt()], dim=1)  # unit vectors with these cosines to (1, 0)
        query, target = torch.tensor([[3.0, 0.0]], dtype=torch.float64), torch.tensor([0])
        loss, _ = InfoNCE(1 / scale, margin=margin).double()(query, Candidates(table, target, torch.arange(3)))
        assert loss.item() == pytest.approx(expected, abs=5e-7)
    dot = InfoNCE(1.0, cosine=False, margin=LSoftmax(4)).double()
    loss, _ = dot(query, Candidates(table * 10 / 3, target, torch.arange(3)))
    assert loss.item() == pytest.approx(12.056593, abs=5e-7)


def naive_scores(query: Tensor, vectors: Tensor, targets: list[int], cosine: bool, definition: Angular) -> Tensor:
    """[B, C], psi(theta) for the target and cos(theta) for the rest, times |w| |x| where it is a dot product."""
    scores = []
    for i in range(len(query)):
        for j in range(len(vectors)):
            lengths = query[i].norm() * vectors[j].norm()
            score = query[i] @ vectors[j] / lengths
            score = definition(score.acos()) if j == targets[i] else score
            scores.append(score if cosine else lengths * score)
    return torch.stack(scores).view(len(query), len(vectors))


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("name", MARGINS)
def test_the_heads_give_the_margin_to_the_positive_alone(name: str, cosine: bool) -> None:
    margin, definition = MARGINS[name]
    query, vectors, target = rows(5, seed=1), rows(7, seed=2), torch.tensor([0, 6, 2, 2, 4])
    expected = naive_scores(query, vectors, target.tolist(), cosine, definition) / 0.2
    shared = Candidates(vectors, target, torch.arange(7))
    each = Candidates(vectors.expand(5, 7, 3), target, torch.arange(7).expand(5, 7))
    for candidates in (shared, each):
        for head, loss in (
            (InfoNCE, F.cross_entropy(expected, target)),
            (NCE, F.softplus(expected * (1 - 2 * F.one_hot(target, 7))).sum() / 5),
        ):
            losses, counted = head(0.2, cosine=cosine, margin=margin).double()(query, candidates)
            assert counted.all()
            assert_same(losses.mean(), loss, query, vectors)


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("name", MARGINS)
def test_over_a_class_table(name: str, cosine: bool) -> None:
    """Where the class is an answer beside the table, and is left out of the table itself."""
    margin, definition = MARGINS[name]
    query, target, table = rows(5, seed=1), torch.tensor([0, 6, 2, 2, 4]), Table(7, 3, std=1.0).double()
    expected = naive_scores(query, table.vectors, target.tolist(), cosine, definition) / 0.2
    ((asking, candidates),) = table(query[None], None, target)
    losses, _ = InfoNCE(0.2, cosine=cosine, margin=margin).double()(asking, candidates)
    assert_same(losses.mean(), F.cross_entropy(expected, target), query, table.vectors)


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("name", MARGINS)
def test_vectors_of_one_direction_and_of_no_length_have_finite_gradients(name: str, cosine: bool) -> None:
    query = rows(6).float().detach()
    query[0], query[1] = torch.tensor([2.0, 0, 0]), torch.tensor([0, 0.5, 0])  # cosines of exactly 1 and -1
    vectors = torch.stack([query[0], -query[1], 3 * query[2], 0 * query[3], query[4], query[5] + 1e-4])
    query[4] = 0
    query, vectors = query.requires_grad_(), vectors.requires_grad_()
    head = InfoNCE(0.05, cosine=cosine, margin=MARGINS[name][0])
    losses, _ = head(query, Candidates(vectors, torch.arange(6), torch.arange(6)))
    losses.sum().backward()
    assert losses.isfinite().all()
    for x in (query, vectors):
        assert x.grad is not None
        assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CosFace(-0.1), r"CosFace lies in \[0, 2\), got -0\.1"),
        (lambda: CosFace(2), r"CosFace lies in \[0, 2\), got 2"),
        (lambda: ArcFace(3.2), r"ArcFace lies in \[0, 3\.142\), got 3\.2"),
        (lambda: ArcFace(math.nan), "got nan"),
        (lambda: LSoftmax(0), "at least 1 and annealing of at least 0: 0, 0"),
        (lambda: LSoftmax(2.5), "at least 1 and annealing of at least 0: 2\\.5, 0"),
        (lambda: LSoftmax(2, annealing=-1), "at least 1 and annealing of at least 0: 2, -1"),
    ],
)
def test_margins_out_of_range(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_arcface_is_exact_at_the_edges_with_a_finite_gradient() -> None:
    cosine = torch.tensor([1.0, 1.0 - 1e-9, 0.5, -1.0], dtype=torch.float64, requires_grad=True)
    margined = ArcFace(0.5)(cosine)
    expected = torch.cos(torch.acos(cosine.detach()[:3]) + 0.5)
    torch.testing.assert_close(margined[:3], expected, rtol=0, atol=1e-12)
    assert torch.autograd.grad(margined.sum(), cosine)[0].isfinite().all()


@pytest.mark.parametrize("tiled", [True, False])
def test_dclw_weighs_by_the_cosine_whatever_margin_and_log_q_are(tiled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, noise = (torch.randn(n, 5, dtype=torch.float64, generator=generator) for n in (4, 4, 6))
    log_q, own_log_q = (torch.randn(n, dtype=torch.float64, generator=generator) for n in (6, 4))
    sigma, t = 0.5, 0.3
    cos = torch.nn.functional.cosine_similarity(query, key)
    weight = 2 - (cos / sigma).exp() / (cos / sigma).exp().mean()
    unit = torch.nn.functional.normalize
    negatives = unit(query) @ unit(noise).T / t - log_q
    expected = negatives.logsumexp(dim=1) - weight * ((cos - 0.35) / t - own_log_q)
    rules = {"log_q": log_q, "positives": key[:, None], "positives_log_q": own_log_q[:, None]}
    head = InfoNCE(t, margin=CosFace(0.35), decoupled=True, positive_sigma=sigma, tiled=tiled).double()
    losses, _ = head(query, Candidates(noise, torch.arange(4), **rules))
    torch.testing.assert_close(losses, expected)
