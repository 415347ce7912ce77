"""Alignment, uniformity and effective rank against loops in float64."""

import math

import numpy as np
import pytest
import torch

from contrast.errors import InputError
from contrast.evaluation.geometry import alignment, effective_rank, uniformity


def points(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(row: torch.Tensor) -> list[float]:
    length = math.sqrt(sum(v * v for v in row.tolist()))
    return [v / length for v in row.tolist()]


def squared(a: list[float], b: list[float]) -> float:
    return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))


def test_alignment_is_the_mean_squared_distance_of_pairs():
    x, y = points(7, 5), points(7, 5, seed=1)
    naive = sum(squared(unit(a), unit(b)) for a, b in zip(x, y, strict=True)) / 7
    assert alignment(x, y).item() == pytest.approx(naive, rel=1e-12)
    assert alignment(x, -3 * x).item() == pytest.approx(4)


@pytest.mark.parametrize("block", [1, 2, 3, 11, 64])
def test_uniformity_is_the_log_mean_over_pairs_whatever_the_block(block):
    x = points(11, 4)
    rows = [unit(row) for row in x]
    pairs = [math.exp(-3 * squared(a, b)) for i, a in enumerate(rows) for b in rows[:i]]
    assert uniformity(x, t=3, block=block).item() == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-12)


def test_uniformity_survives_exponents_that_underflow():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(x, t=1000).item() == pytest.approx(-4000)


def test_uniformity_has_the_gradient_of_its_definition():
    x = points(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: uniformity(x, block=2), x)


def test_effective_rank_is_the_exponent_of_the_entropy():
    x = points(9, 4)
    values = np.linalg.svd(x.numpy(), compute_uv=False)
    p = [v / sum(values) for v in values]
    assert effective_rank(x).item() == pytest.approx(math.exp(-sum(v * math.log(v) for v in p)), rel=1e-12)
    assert effective_rank(3 * torch.eye(6)).item() == pytest.approx(6)
    assert effective_rank(points(3, 1) @ points(1, 8)).item() == pytest.approx(1)


def test_collapsed_embeddings_are_finite():
    equal, zero = torch.ones(6, 4), torch.zeros(6, 4)
    assert alignment(equal, equal).item() == 0
    assert alignment(zero, zero).item() == 0
    assert uniformity(equal).item() == pytest.approx(0, abs=1e-6)
    assert uniformity(zero).item() == pytest.approx(0, abs=1e-6)
    assert effective_rank(equal).item() == pytest.approx(1, abs=1e-4)
    assert effective_rank(zero).item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_in_float32_even_under_autocast(dtype):
    x, y = points(300, 16).to(dtype), points(300, 16, seed=1).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [alignment(x, y), uniformity(x), effective_rank(x)]
    wanted = [alignment(x.double(), y.double()), uniformity(x.double()), effective_rank(x.double())]
    for value, truth in zip(found, wanted, strict=True):
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(truth.item(), rel=1e-5)


def test_shapes_are_refused_with_their_numbers():
    with pytest.raises(InputError, match=r"\[3, 2\] and \[4, 2\]"):
        alignment(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(InputError, match=r"\[1, 2\]"):
        uniformity(torch.ones(1, 2))
    with pytest.raises(InputError, match=r"\[0, 2\]"):
        effective_rank(torch.ones(0, 2))


def test_effective_rank_of_what_is_not_finite_is_nan() -> None:
    x = torch.randn(5, 3)
    x[2, 1] = float("inf")
    assert effective_rank(x).isnan()
