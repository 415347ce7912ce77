"""The losses as modules: the functions' values and gradients, temperatures that are learned, and what is refused."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from contrast import functional
from contrast.errors import InputError
from contrast.heads import Cosine
from contrast.losses import CLIPLoss, DCLLoss, InfoNCELoss, NTXentLoss, SigLIPLoss, SupConLoss, functions
from contrast.losses.modules import ContrastiveLoss

LABELS = torch.tensor([1, 0, 1, 2, 0, 3])


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


# the inputs of each module after two batches of vectors, and the function that it stands for
MODULES: dict[str, tuple[type[ContrastiveLoss], tuple[Any, ...], Callable[..., Tensor]]] = {
    "nt_xent": (NTXentLoss, (), functional.nt_xent),
    "dcl": (DCLLoss, (), functional.dcl),
    "sup_con": (SupConLoss, (LABELS,), functional.sup_con),
    "info_nce": (InfoNCELoss, (), lambda a, b, t, **options: functional.info_nce(a, b, None, t, **options)),
    "info_nce, shared": (InfoNCELoss, (rows(9, 4, seed=3),), functional.info_nce),
    "info_nce, each its own": (InfoNCELoss, (rows(6, 9, 4, seed=3),), functional.info_nce),
    "clip_loss": (CLIPLoss, (), functional.clip_loss),
    "siglip_loss": (SigLIPLoss, (), functional.siglip_loss),
}


def assert_same(loss: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    weights = torch.arange(1, loss.numel() + 1, dtype=loss.dtype).view(
        loss.shape
    )  # a gradient of its own for every row
    for x in inputs:
        got, wanted = (torch.autograd.grad((weights * y).sum(), x, retain_graph=True)[0] for y in (loss, expected))
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("options", [{}, {"reduction": "none", "normalize": False}])
@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_its_function(name: str, options: dict[str, Any]) -> None:
    module, more, function = MODULES[name]
    a, b = rows(6, 4, seed=1), rows(6, 4, seed=2)
    bias = (-3.0,) if module is SigLIPLoss else ()
    inputs = [a, b, *(x for x in more if x.requires_grad)]
    assert_same(module(0.3, *bias, **options)(a, b, *more), function(a, b, *more, 0.3, *bias, **options), *inputs)


@pytest.mark.parametrize("name", MODULES)
def test_a_learned_temperature_and_bias_have_the_functions_gradients(name: str) -> None:
    module, more, function = MODULES[name]
    a, b = rows(6, 4, seed=1), rows(6, 4, seed=2)
    bias = (-3.0,) if module is SigLIPLoss else ()
    learned = module(0.3, *bias, learnable=True).double()
    temperature = learned.temperature().detach().requires_grad_()
    with_gradient = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in bias]
    expected = function(a, b, *more, temperature, *with_gradient)
    loss = learned(a, b, *more)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert temperature.item() == pytest.approx(0.3, rel=1e-6)  # the parameter was made in float32
    got = dict(zip(dict(learned.named_parameters()), torch.autograd.grad(loss, learned.parameters()), strict=True))
    wanted = torch.autograd.grad(expected, [temperature, *with_gradient])
    torch.testing.assert_close(got["temperature.log_temperature"], temperature * wanted[0])  # d / d log T = T d / dT
    assert ("bias" in got) == bool(bias)
    if bias:
        torch.testing.assert_close(got["bias"], wanted[1])


def test_what_is_learned_is_in_the_state_dict() -> None:
    learned = SigLIPLoss(0.2, bias=-3.0, learnable=True)
    assert set(learned.state_dict()) == {"temperature.log_temperature", "bias"}
    resumed = SigLIPLoss(learnable=True)
    resumed.load_state_dict(learned.state_dict())
    assert resumed.temperature().item() == pytest.approx(0.2)
    assert resumed.bias.item() == -3.0
    assert not list(SigLIPLoss().parameters())


def test_a_learned_temperature_stays_within_its_bounds_and_comes_back() -> None:
    loss, z1, z2 = NTXentLoss(0.07, learnable=True, minimum=0.05, maximum=0.1), rows(6, 4), rows(6, 4, seed=1)
    parameter = loss.temperature.log_temperature
    for wanted, bound in ((1e-9, 0.05), (3.0, 0.1)):
        with torch.no_grad():
            parameter.fill_(math.log(wanted))
        expected = functional.nt_xent(z1, z2, bound)
        assert loss(z1, z2).item() == pytest.approx(expected.item(), rel=1e-6)
        assert parameter.exp().item() == pytest.approx(bound)
        (gradient,) = torch.autograd.grad(loss(z1, z2), parameter)
        assert gradient != 0


def test_evaluation_does_not_change_a_learned_temperature() -> None:
    loss = NTXentLoss(learnable=True).eval()
    with torch.no_grad():
        loss.temperature.log_temperature.fill_(2.0)
    loss(rows(6, 4), rows(6, 4, seed=1))
    assert loss.temperature.log_temperature.item() == 2.0


def test_two_batches_may_go_forward_before_one_goes_backward() -> None:
    """The parameter is clamped in place at each forward pass, which autograd must not take for a change."""
    loss, z1, z2 = NTXentLoss(learnable=True), rows(6, 4), rows(6, 4, seed=1)
    (loss(z1, z2) + loss(z2, z1)).backward()
    assert loss.temperature.log_temperature.grad.isfinite()


def test_a_temperature_may_be_a_schedule() -> None:
    schedule, z1, z2 = Cosine(0.5, 0.1, steps=2), rows(6, 4), rows(6, 4, seed=1)
    loss = NTXentLoss(schedule)
    for wanted in (0.5, 0.3, 0.1):
        assert loss(z1, z2).item() == pytest.approx(functional.nt_xent(z1, z2, wanted).item(), rel=1e-6)
        schedule.advance()
    assert set(loss.state_dict()) == {"temperature.step", "temperature.steps"}


@pytest.mark.parametrize("name", ["nt_xent", "dcl", "sup_con", "info_nce", "clip_loss", "siglip_loss"])
def test_gather_reaches_the_function(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(functions, name, lambda *args, gather, **options: seen.append(gather), raising=False)
    module, more, _ = MODULES[name]
    for gather in (False, True):
        module(gather=gather)(rows(6, 4), rows(6, 4), *more)
    assert seen == [False, True]


def test_views_in_a_dimension_of_their_own() -> None:
    """As SupConLoss says: [N, views, D] with any number of views is the same loss."""
    features = rows(6, 2, 4)
    loss = SupConLoss(0.3)(features.flatten(0, 1), None, LABELS.repeat_interleave(2))
    assert_same(loss, functional.sup_con(*features.unbind(1), LABELS, 0.3), features)


@pytest.mark.parametrize("name", ["nt_xent", "siglip_loss"])
def test_compiled(name: str) -> None:
    a, b = rows(6, 4, seed=1), rows(6, 4, seed=2)
    loss = MODULES[name][0](learnable=True).double()
    compiled = torch.compile(loss, backend="aot_eager")
    for temperature in (0.1, 0.0001):  # the second is below the minimum
        with torch.no_grad():
            loss.temperature.log_temperature.fill_(math.log(temperature))
        value = compiled(a, b)
        assert loss.temperature.log_temperature.exp().item() == pytest.approx(max(temperature, 0.01))
        inputs, expected = (a, b, *loss.parameters()), loss(a, b)
        torch.testing.assert_close(value, expected)
        for got, wanted in zip(*(torch.autograd.grad(y, inputs) for y in (value, expected)), strict=True):
            torch.testing.assert_close(got, wanted)


def test_what_a_module_shows() -> None:
    assert repr(CLIPLoss()) == "CLIPLoss(temperature=0.07, gather=False, reduction='mean', normalize=True)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NTXentLoss(0), r"positive number or a module, got 0"),
        (lambda: NTXentLoss(math.inf), r"got inf"),
        (lambda: NTXentLoss("warm"), r"got 'warm'"),
        (
            lambda: NTXentLoss(0.1, learnable=True, minimum=0.2),
            r"<= temperature <= maximum, got 0\.2, 0\.1, 1\.0",
        ),
        (lambda: NTXentLoss(2.0, learnable=True), r"got 0\.01, 2\.0, 1\.0"),
        (lambda: NTXentLoss(Cosine(0.5, 0.1, 5), learnable=True), r"learnable=True needs a number"),
        (lambda: SigLIPLoss(bias=math.nan), r"bias must be a finite number, got nan"),
        (lambda: SigLIPLoss(bias="cold"), r"got 'cold'"),
        (lambda: NTXentLoss(reduction="sum")(rows(6, 4), rows(6, 4)), r"reduction is mean or none, not 'sum'"),
    ],
)
def test_refusals(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
    with pytest.raises(TypeError, match="sigma"):
        CLIPLoss(sigma=1.0)
