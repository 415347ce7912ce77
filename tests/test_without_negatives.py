"""BYOL, SimSiam, Barlow Twins and VICReg: the formulas of the papers in naive loops, with their gradients."""

import pytest
import torch
from torch import Tensor

from contrast.errors import InputError
from contrast.heads import Alignment, Covariance, CrossCorrelation
from contrast.negatives import Dimensions, PositivesOnly

N, D = 9, 4


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def assert_same(loss: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(loss, expected)
    for x in inputs:
        got, wanted = (torch.autograd.grad(y, x, retain_graph=True)[0] for y in (loss, expected))
        torch.testing.assert_close(got, wanted)


def mean_loss(source: torch.nn.Module, head: torch.nn.Module, query: Tensor, key: Tensor) -> Tensor:
    losses, counted = zip(*(head.double()(q, c) for q, c in source(query, key, torch.arange(N))), strict=True)
    assert torch.cat(counted).all()
    return torch.cat(losses).mean()


def test_byol_and_simsiam() -> None:
    """|q / |q| - k / |k||^2 of every query and its key, which has no gradient."""
    query, key = rows(2, N, D), rows(2, N, D, seed=1)
    total = torch.zeros((), dtype=torch.float64)
    for p in range(2):
        for i in range(N):
            q, k = query[p, i] / query[p, i].norm(), (key[p, i] / key[p, i].norm()).detach()
            total = total + (q - k).square().sum()
    loss = mean_loss(PositivesOnly(), Alignment(), query, key)
    assert_same(loss, total / (2 * N), query)
    assert torch.autograd.grad(loss, key, allow_unused=True) == (None,)


def test_barlow_twins() -> None:
    a, b = rows(N, D), rows(N, D, seed=1)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(D):
        for j in range(D):
            x, y = a[:, i] - a[:, i].mean(), b[:, j] - b[:, j].mean()
            c = (x * y).sum() / (x.square().sum().sqrt() * y.square().sum().sqrt())
            total = total + ((1 - c) ** 2 if i == j else 0.01 * c**2)
    views = torch.stack([a, b])
    loss = mean_loss(Dimensions(), CrossCorrelation(0.01), views, views.roll(-1, dims=0))
    assert_same(D * loss, total, a, b)


def test_barlow_twins_with_a_momentum_key_has_both_directions() -> None:
    query, key = rows(2, N, D), rows(2, N, D, seed=1).detach()
    assert len(Dimensions()(query, key, torch.arange(N))) == 2
    both = [mean_loss(Dimensions(), CrossCorrelation(), query[p : p + 1], key[p : p + 1]) for p in range(2)]
    assert_same(mean_loss(Dimensions(), CrossCorrelation(), query, key), (both[0] + both[1]) / 2, query)


@pytest.mark.parametrize("scale", [0.3, 3.0])  # with and without the hinge of the variance
def test_vicreg(scale: float) -> None:
    a, b = rows(N, D), rows(N, D, seed=1)
    x, y = scale * a, scale * b
    invariance = (x - y).square().mean()
    variance = covariance = torch.zeros((), dtype=torch.float64)
    for z in (x, y):
        for i in range(D):
            zi = z[:, i] - z[:, i].mean()
            variance = variance + (1 - (zi.square().sum() / (N - 1) + 1e-4).sqrt()).clamp(min=0) / (2 * D)
            for j in range(D):
                if i != j:
                    zj = z[:, j] - z[:, j].mean()
                    covariance = covariance + ((zi * zj).sum() / (N - 1)) ** 2 / D
    views = torch.stack([x, y])
    loss = mean_loss(Dimensions(among="queries"), Covariance(25.0, 20.0, 1.5), views, views.roll(-1, dims=0))
    assert_same(loss, 25 * invariance + 20 * variance + 1.5 * covariance, a, b)


@pytest.mark.parametrize(
    ("source", "head"),
    [(Dimensions(), CrossCorrelation), (Dimensions(among="queries"), Covariance)],
)
def test_blocks_of_dimensions(source: Dimensions, head: type, monkeypatch: pytest.MonkeyPatch) -> None:
    query = rows(2, N, D)
    key = query.roll(-1, dims=0)
    whole, parts = head(), head()
    parts.tiled = True
    monkeypatch.setattr("contrast.losses.scores.MIN_SCORES_BLOCKS", 1)  # one dimension at a time
    assert_same(mean_loss(source, parts, query, key), mean_loss(source, whole, query, key), query)


def test_metrics() -> None:
    query = rows(2, N, D)
    key = query.roll(-1, dims=0)
    ((q, candidates), *_) = Dimensions(among="queries")(query, key, torch.arange(N))
    metrics = Covariance().describe(q, candidates)
    torch.testing.assert_close(metrics["std"], (query[0].var(dim=0) + 1e-4).sqrt().mean())
    ((q, candidates),) = Dimensions()(query, key, torch.arange(N))
    metrics = CrossCorrelation().describe(q, candidates)
    assert set(metrics) >= {"top1", "positive_score", "negative_score"}
    ((q, candidates), *_) = PositivesOnly()(query, key, torch.arange(N))
    assert Alignment().describe(q, candidates)["uncounted"] == 0


def test_what_does_not_work_is_refused() -> None:
    query = rows(1, N, D)
    for source in (PositivesOnly(), Dimensions()):
        with pytest.raises(InputError, match="second view"):
            source(query, None, torch.arange(N))
    with pytest.raises(InputError, match="variance"):
        Dimensions()(query[:, :1], query[:, :1], torch.arange(1))
    with pytest.raises(InputError, match="both"):
        Dimensions(among="both")
    with pytest.raises(InputError, match="-1"):
        CrossCorrelation(-1.0)
    with pytest.raises(InputError, match="epsilon"):
        Covariance(epsilon=0.0)
    ((q, candidates),) = Dimensions()(query, query, torch.arange(N))
    with pytest.raises(InputError, match="among=queries"):
        Covariance()(q, candidates)
