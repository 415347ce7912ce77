"""The same losses, gradients and optima as lightly, pytorch-metric-learning, info-nce-pytorch, torch and scikit-learn.

The first three come with `pip install 'contrast-learning[bench]'`.
"""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from contrast.candidates import Candidates
from contrast.errors import InputError
from contrast.functional import dcl, info_nce, nt_xent, sup_con
from contrast.heads import AdaptiveSoftmax, Alignment, Covariance, CrossCorrelation, InfoNCE
from contrast.heads.adaptive_softmax import usual_cutoffs
from contrast.losses.similarity import unit
from contrast.negatives import Dimensions, InBatch, PositivesOnly, Prototypes, Table, Targets

pytestmark = pytest.mark.slow


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def assert_same(loss: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(loss, expected)
    for x in inputs:
        got, wanted = (torch.autograd.grad(y, x, retain_graph=True)[0] for y in (loss, expected))
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_lightly(temperature: float) -> None:
    losses = pytest.importorskip("lightly.loss")
    z1, z2 = rows(16, 8, seed=1), rows(16, 8, seed=2)
    assert_same(nt_xent(z1, z2, temperature), losses.NTXentLoss(temperature)(z1, z2), z1, z2)
    assert_same(dcl(z1, z2, temperature), losses.DCLLoss(temperature)(z1, z2), z1, z2)


@pytest.mark.filterwarnings("ignore:To copy construct")
@pytest.mark.parametrize("sigma", [0.2, 0.5])
def test_lightlys_weighted_dcl(sigma: float) -> None:
    peer = pytest.importorskip("lightly.loss").DCLWLoss(0.1, sigma=sigma)
    z1, z2 = rows(16, 8, seed=1), rows(16, 8, seed=2)
    ((query, candidates),) = InBatch()(torch.stack([z1, z2]), None, torch.arange(16))
    head = InfoNCE(0.1, decoupled=True, positive_sigma=sigma).double()
    assert_same(head(query, candidates)[0].mean(), peer(z1, z2), z1, z2)


def total(source: nn.Module, head: nn.Module, query: Tensor, key: Tensor) -> Tensor:
    losses = [head.double()(q, candidates)[0] for q, candidates in source(query, key, torch.arange(query.shape[1]))]
    return torch.cat(losses)


def test_lightlys_losses_without_negatives() -> None:
    losses = pytest.importorskip("lightly.loss")
    z1, z2 = rows(32, 8, seed=1), rows(32, 8, seed=2)
    views = torch.stack([z1, z2])
    key = views.roll(-1, dims=0)
    byol = total(PositivesOnly(), Alignment(), views, key).mean()
    cosine = losses.NegativeCosineSimilarity()
    assert_same(byol, 2 + cosine(z1, z2.detach()) + cosine(z2, z1.detach()), z1, z2)
    wide = 100 * views  # so that batch norm's epsilon does not count
    barlow = total(Dimensions(), CrossCorrelation(0.01), wide, wide.roll(-1, dims=0)).sum()
    assert_same(barlow, losses.BarlowTwinsLoss(0.01)(100 * z1, 100 * z2), z1, z2)
    for scale in (0.2, 2.0):
        scaled = scale * views
        vicreg = total(Dimensions(among="queries"), Covariance(), scaled, scaled.roll(-1, dims=0)).mean()
        assert_same(vicreg, losses.VICRegLoss()(scale * z1, scale * z2), z1, z2)


def test_lightlys_losses_over_prototypes() -> None:
    losses = pytest.importorskip("lightly.loss")
    views, source = torch.stack([rows(32, 8, seed=1), rows(32, 8, seed=2)]), Prototypes(16, 8, 0.05, "sinkhorn")
    scores = unit(views) @ unit(source.double().vectors).T  # [V, B, K]
    swav = total(source, InfoNCE(0.1), views, views.roll(-1, dims=0)).mean()
    expected = losses.SwaVLoss(0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.05)(list(scores), [])
    assert_same(swav, expected.squeeze(), source.vectors)
    key, dino = torch.stack([rows(32, 8, seed=3), rows(32, 8, seed=4)]).detach(), Prototypes(16, 8).double()
    peer = losses.DINOLoss(16, teacher_temp=0.04, warmup_teacher_temp=0.04).double()
    for step in range(3):  # with a centre after the first
        of_key = unit(key) @ unit(dino.vectors.detach()).T
        ours = total(dino, InfoNCE(0.1), views, key.roll(-1, dims=0)).mean()
        theirs = peer(list(of_key), list(unit(views) @ unit(dino.vectors).T), teacher_temp=0.04)
        assert_same(ours, theirs, dino.vectors)
        with torch.no_grad():  # the optimiser's step
            dino.vectors += rows(16, 8, seed=10 + step)
        dino.update(views.detach(), key, torch.arange(32))
        dino.advance()


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_pytorch_metric_learning(temperature: float) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    z1, z2, each = rows(16, 8, seed=1), rows(16, 8, seed=2), torch.arange(16)
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3, 4, 5])  # of one view, 4 and 5 have no positive
    z = torch.cat([z1, z2])
    assert_same(nt_xent(z1, z2, temperature), losses.NTXentLoss(temperature)(z, each.repeat(2)), z1, z2)
    peer = losses.SupConLoss(temperature)
    assert_same(sup_con(z1, z2, labels, temperature), peer(z, labels.repeat(2)), z1, z2)
    assert_same(sup_con(z1, None, labels, temperature), peer(z1, labels), z1)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_info_nce_pytorch(temperature: float, reduction: str) -> None:
    peer = pytest.importorskip("info_nce").info_nce
    query, key = rows(16, 8, seed=1), rows(16, 8, seed=2)
    for negatives, mode in ((None, "unpaired"), (rows(9, 8, seed=3), "unpaired"), (rows(16, 9, 8, seed=3), "paired")):
        ours = info_nce(query, key, negatives, temperature, reduction)
        theirs = peer(query, key, negatives, temperature, reduction, mode)
        torch.testing.assert_close(ours, theirs)
        assert_same(ours.sum(), theirs.sum(), query, key, *(() if negatives is None else (negatives,)))


def test_adaptive_softmax_is_torchs() -> None:
    query, target = rows(2, 12, 16), torch.randint(100, (12,), generator=torch.Generator().manual_seed(1))
    ours, theirs = (
        AdaptiveSoftmax(16, 100, [10, 40]).double(),
        nn.AdaptiveLogSoftmaxWithLoss(16, 100, [10, 40]).double(),
    )
    theirs.load_state_dict(ours.softmax.state_dict())
    ((asking, candidates),) = Targets()(query, None, target)
    losses, counted = ours(asking, candidates)
    assert counted.all()
    loss, expected = losses.mean(), theirs(query.flatten(0, 1), target.repeat(2)).loss
    assert_same(loss, expected, query)
    grads = torch.autograd.grad(loss, ours.parameters())
    for got, wanted in zip(grads, torch.autograd.grad(expected, theirs.parameters()), strict=True):
        torch.testing.assert_close(got, wanted)
    log_p = ours.log_prob(asking)
    torch.testing.assert_close(log_p.exp().sum(dim=1), torch.ones(24, dtype=torch.float64))
    torch.testing.assert_close(-log_p.gather(1, target.repeat(2)[:, None])[:, 0], losses)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adaptive_softmax_takes_half_queries(dtype: torch.dtype) -> None:
    head, query, target = AdaptiveSoftmax(16, 100, [10, 40]), rows(12, 16).detach().to(dtype), torch.arange(12)
    candidates = Candidates(query.new_empty(0, 16), target)
    with torch.autocast("cpu", torch.bfloat16):
        losses, log_p = head(query, candidates)[0], head.log_prob(query)
    assert losses.dtype == log_p.dtype == torch.float32
    torch.testing.assert_close(losses, head(query.float(), candidates)[0])
    torch.testing.assert_close(log_p, head.log_prob(query.float()))


def test_usual_cutoffs_follow_the_number_of_classes_and_dimensions() -> None:
    expected = {
        (2, 512): [1],
        (10, 512): [2],
        (10_000, 129): [2000],
        (50_000, 129): [2000, 8000],
        (200_000, 129): [2000, 8000, 32_000],
        (200_000, 33): [2000, 8000],  # a third cluster would have no dimension
        (200_000, 9): [2000],
    }
    assert {(size, dim): usual_cutoffs(size, dim) for size, dim in expected} == expected
    for size in range(2, 3000):
        cutoffs = usual_cutoffs(size, 512)
        assert cutoffs == sorted(set(cutoffs))
        assert cutoffs[0] >= 1
        assert cutoffs[-1] <= max(1, size // 2) < size


def test_a_cluster_without_dimensions_is_refused() -> None:
    with pytest.raises(InputError, match=r"33 dimensions divided by 4\.0, its square, \.\.\. have \[8, 2, 0\]"):
        AdaptiveSoftmax(33, 64_000, [2000, 8000, 32_000])
    with pytest.raises(InputError, match=r"have \[0\]"):
        AdaptiveSoftmax(3, 10)


def fitted(x: Tensor, target: Tensor, classes: int, c: float) -> Tensor:
    """Class vectors at the optimum of InfoNCE's mean loss over the table + |vectors|^2 / (2 c n)."""
    table, head = Table(classes, x.shape[1]).double(), InfoNCE(1.0, cosine=False).double()
    optimizer = torch.optim.LBFGS(
        table.parameters(), max_iter=1000, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        ((query, candidates),) = table(x[None], None, target)
        loss = head(query, candidates)[0].mean() + table.vectors.square().sum() / (2 * c * len(x))
        loss.backward()
        return loss

    optimizer.step(closure)
    return table.vectors.detach()


def standardised(data: Any) -> tuple[np.ndarray, np.ndarray]:
    return (data.data - data.data.mean(axis=0)) / data.data.std(axis=0), data.target.astype(np.int64)


def test_the_optimum_over_a_table_is_scikit_learns_multinomial_regression() -> None:
    x, y = standardised(load_iris())
    theirs = LogisticRegression(C=2.0, fit_intercept=False, tol=1e-10, max_iter=10000).fit(x, y)
    vectors = fitted(torch.from_numpy(x), torch.from_numpy(y), 3, c=2.0)
    torch.testing.assert_close(vectors, torch.from_numpy(theirs.coef_), rtol=0, atol=1e-4)


def test_the_optimum_over_two_classes_is_scikit_learns_binary_regression() -> None:
    """w = w_1 - w_0, and the least |w_0|^2 + |w_1|^2 for it is |w|^2 / 2: theirs has twice our c."""
    x, y = standardised(load_breast_cancer())
    theirs = LogisticRegression(C=0.2, fit_intercept=False, tol=1e-10, max_iter=10000).fit(x, y)
    vectors = fitted(torch.from_numpy(x), torch.from_numpy(y), 2, c=0.1)
    torch.testing.assert_close(vectors[1:] - vectors[:1], torch.from_numpy(theirs.coef_), rtol=0, atol=1e-4)
