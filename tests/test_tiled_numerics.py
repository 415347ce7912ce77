"""The tiled losses in float32 and from half inputs, at the edges of their range, and what they hold in memory."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from contrast.errors import InputError
from contrast.heads import NCE, Head, InfoNCE, Learnable, LearnedBias
from contrast.losses import plan as plans
from contrast.losses.tiled.cpu import softplus
from contrast.negatives import InBatch

HEADS = {
    "InfoNCE": lambda t, tiled: InfoNCE(Learnable(t, 1e-4), tiled=tiled),
    "NCE": lambda t, tiled: NCE(Learnable(t, 1e-4), bias=LearnedBias(-3.0), tiled=tiled),
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "TILE_ROWS", 48)
    monkeypatch.setattr(plans, "TILE_COLUMNS", 48)


def views(images: int, dim: int, noise: float, seed: int = 0) -> Tensor:
    """Two views of each image, [2, N, D], the second a noisy copy of the first."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(images, dim, generator=generator)
    return torch.stack([first, first + noise * torch.randn(images, dim, generator=generator)])


def told(head: Head, z: Tensor, ids: Tensor | None = None, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """The mean loss of z [2, N, D], and `scale` times its gradient."""
    z = z.detach().clone().requires_grad_()
    ((query, candidates),) = InBatch()(z, None, torch.arange(z.shape[1]) if ids is None else ids)
    loss = head(query, candidates)[0].mean()
    return loss.detach(), torch.autograd.grad(scale * loss, z)[0]


def error(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


def test_softplus_keeps_its_digits() -> None:
    scores = torch.linspace(-80, 80, 10_001)
    torch.testing.assert_close(softplus(scores.clone()).double(), F.softplus(scores.double()), rtol=5e-6, atol=0)


@pytest.mark.parametrize("most", [16, 0])
@pytest.mark.parametrize("temperature", [0.5, 0.05, 0.005])
@pytest.mark.parametrize("name", HEADS)
def test_float32_is_float64(name: str, temperature: float, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "MAX_PAIRS_PER_ROW", most)
    z, tolerance = views(64, 32, noise=0.3), {0.5: 5e-6, 0.05: 5e-6, 0.005: 2e-4}[temperature]
    loss, grad = told(HEADS[name](temperature, True), z)
    expected_loss, expected_grad = told(HEADS[name](temperature, False).double(), z.double())
    assert loss.dtype == grad.dtype == torch.float32
    assert error(loss, expected_loss) < tolerance
    assert error(grad, expected_grad) < tolerance


@pytest.mark.parametrize("most", [16, 0])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", HEADS)
def test_half_inputs(name: str, dtype: torch.dtype, autocast: bool, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed in float32, with autocast too: only the gradient that comes back is rounded."""
    monkeypatch.setattr(plans, "MAX_PAIRS_PER_ROW", most)
    z = views(64, 32, noise=0.3).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, grad = told(HEADS[name](0.1, True), z, scale=1000.0)  # as a loss scaler does: tiny halves lose digits
    expected_loss, expected_grad = told(HEADS[name](0.1, False).double(), z.double(), scale=1000.0)
    assert loss.dtype == torch.float32
    assert grad.dtype == dtype
    assert error(loss, expected_loss) < 5e-6
    assert error(grad, expected_grad) < torch.finfo(dtype).eps


def masked_cross_entropy(z: Tensor, temperature: float) -> Tensor:
    """The gradient of NT-Xent by the plain form, lse - s_pos."""
    z = z.detach().clone().requires_grad_()
    unit = F.normalize(z.flatten(0, 1))
    scores = (unit @ unit.T / temperature).fill_diagonal_(-torch.inf)
    n = z.shape[1]
    return torch.autograd.grad(F.cross_entropy(scores, torch.arange(2 * n).roll(n)), z)[0]


def test_the_gradient_of_a_solved_batch_keeps_its_digits() -> None:
    z = views(256, 128, noise=0.7)
    expected_loss, expected = told(InfoNCE(0.05, tiled=False).double(), z.double())
    loss, grad = told(InfoNCE(0.05, tiled=True), z)
    assert 1e-4 < loss < 4e-4
    assert error(loss, expected_loss) < 1e-5
    assert error(grad, expected) < 1e-5
    assert error(masked_cross_entropy(z, 0.05), expected) > 10 * error(grad, expected)  # why it is not written so


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", ["zero", "short", "longest", "duplicates", "opposite"])
def test_stress_stays_finite(case: str, dtype: torch.dtype, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    z = views(40, 8, noise=1.0)
    if case == "zero":
        z[:, ::3] = 0
    elif case == "short":
        z = z * 1e-2
    elif case == "longest":
        z = z / z.norm(dim=2, keepdim=True) * 65504 * 0.99
    elif case == "duplicates":
        z = z[:, :1] * (1 + 1e-3 * z)
    else:
        z[1] = -z[0]
    z = z.to(dtype)
    for cosine, most in [(True, 16), (True, 0), (False, 16), (False, 0)]:
        monkeypatch.setattr(plans, "MAX_PAIRS_PER_ROW", most)
        head = HEADS[name](0.005, True)
        head.cosine = cosine
        loss, grad = told(head, z)
        assert loss.isfinite()
        if cosine:  # dot products of 65504 have gradients beyond float16
            assert grad.isfinite().all()
            expected, _ = told(HEADS[name](0.005, False).double(), z.double())
            assert error(loss, expected) < 1e-4


def test_a_second_derivative_of_tiles_with_masks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the incoming gradient is a constant: torch's once_differentiable lets it pass, wrongly."""
    monkeypatch.setattr(plans, "MAX_PAIRS_PER_ROW", 0)
    z = views(8, 4, noise=1.0).requires_grad_()
    ((query, candidates),) = InBatch()(z, None, torch.arange(8))
    for head in (InfoNCE(tiled=True), NCE(tiled=True)):
        loss = head(query, candidates)[0].sum()
        with pytest.raises(InputError, match="second derivative"):
            torch.autograd.grad(loss, z, create_graph=True)


class Largest(TorchDispatchMode):
    """The most elements of a tensor that any operation gives back, forward and backward."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else [out]:
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return out


@pytest.mark.parametrize("temperature", [0.1, 0.005])
@pytest.mark.parametrize("most", [16, 0])
@pytest.mark.parametrize("name", HEADS)
def test_no_matrix_of_scores_is_ever_held(
    name: str, most: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, dim, tile = 4096, 32, 256
    monkeypatch.setattr(plans, "TILE_ROWS", tile)
    monkeypatch.setattr(plans, "TILE_COLUMNS", tile)
    monkeypatch.setattr(plans, "MAX_PAIRS_PER_ROW", most)
    z = views(n // 2, dim, noise=1.0).requires_grad_()
    ((query, candidates),) = InBatch()(z, None, torch.arange(n // 2))
    saved: list[Tensor] = []
    with Largest() as largest, saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        HEADS[name](temperature, True)(query, candidates)[0].mean().backward()
    assert z.grad is not None
    assert largest.elements <= n * dim
    assert sum(x.numel() for x in saved) <= 12 * n * dim
