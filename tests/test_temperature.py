"""Temperatures: values, gradients, schedules, and what a resume restores."""

import math

import pytest
import torch
from torch import nn

from contrast.errors import InputError
from contrast.heads import Cosine, Fixed, InfoNCE, Learnable
from contrast.negatives import InBatch
from contrast.optim import parameter_groups


def loss_at(head: InfoNCE, z: torch.Tensor) -> torch.Tensor:
    ((query, candidates),) = InBatch()(z, None, torch.arange(z.shape[1]))
    return head(query, candidates)[0].mean()


def test_gradient_with_respect_to_temperature_is_the_finite_difference() -> None:
    torch.manual_seed(0)
    z = torch.randn(2, 8, 5, dtype=torch.float64)
    head = InfoNCE(Learnable(0.2)).double()
    loss_at(head, z).backward()
    log_t, step = head.temperature.log_temperature, 1e-6
    around = []
    for sign in (-1, 1):
        with torch.no_grad():
            log_t.fill_(math.log(0.2) + sign * step)
        around.append(loss_at(head, z).item())
    assert log_t.grad.item() == pytest.approx((around[1] - around[0]) / (2 * step), rel=1e-6)


def test_learnable_is_clamped_after_a_step_and_comes_back() -> None:
    temperature = Learnable(0.07, minimum=0.05, maximum=0.1)
    assert temperature().item() == pytest.approx(0.07)
    for wanted, got in ((1e-9, 0.05), (3.0, 0.1)):
        with torch.no_grad():
            temperature.log_temperature.fill_(math.log(wanted))
        temperature.advance()
        assert temperature().item() == pytest.approx(got)
        temperature().backward()
        assert temperature.log_temperature.grad != 0
        temperature.log_temperature.grad = None


def test_learnable_has_no_weight_decay() -> None:
    head = InfoNCE(Learnable(0.07))
    groups = parameter_groups(nn.ModuleList([nn.Linear(2, 2), head]), weight_decay=0.1)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decays[id(head.temperature.log_temperature)] == 0


def test_cosine_runs_between_its_ends_and_resumes() -> None:
    schedule = Cosine(0.5, 0.1)
    schedule.plan(10)
    seen = []
    for _ in range(12):
        seen.append(schedule().item())
        schedule.advance()
    expected = [0.1 + 0.4 * (1 + math.cos(math.pi * min(t, 10) / 10)) / 2 for t in range(12)]
    assert seen == pytest.approx(expected)
    resumed = Cosine(0.5, 0.1)
    resumed.load_state_dict(schedule.state_dict())
    resumed.plan(24)  # the run goes on for longer, like its learning rate
    assert resumed().item() == pytest.approx(0.1 + 0.4 / 2)
    fixed = Cosine(0.5, 0.1, steps=10)
    fixed.load_state_dict(schedule.state_dict())
    fixed.plan(24)
    assert fixed().item() == pytest.approx(0.1)


def test_a_fixed_temperature_is_in_the_state_dict() -> None:
    resumed = Fixed(0.5)
    resumed.load_state_dict(Fixed(0.2).state_dict())
    assert resumed().item() == pytest.approx(0.2)


@pytest.mark.parametrize("bad", [0, -0.1, float("nan"), float("inf"), "warm"])
def test_a_temperature_must_be_positive(bad: float) -> None:
    with pytest.raises(InputError, match=r"temperature must be a positive number, got"):
        InfoNCE(bad)
    with pytest.raises(InputError, match="start temperature"):
        Cosine(bad, 0.1)


def test_other_bad_schedules() -> None:
    with pytest.raises(InputError, match="at least 1 step, got 0"):
        Cosine(0.5, 0.1, steps=0)
    with pytest.raises(InputError, match=r"got 0\.1, 0\.07, 1\.0"):
        Learnable(0.07, minimum=0.1)


def test_a_schedule_that_was_never_planned_is_refused() -> None:
    """It would jump to its end after one step."""
    with pytest.raises(InputError, match="steps=N"):
        Cosine(0.5, 0.1).advance()
    schedule = Cosine(0.5, 0.1, steps=4)
    schedule.advance()
    assert 0.1 < schedule().item() < 0.5
