"""Temperatures: fixed, learnable, scheduled. A temperature divides the similarities; its state is in the state dict."""

import math

import torch
from torch import Tensor, nn

from contrast.errors import InputError


class Temperature(nn.Module):
    """A temperature: calling it gives a scalar tensor."""

    def advance(self) -> None:
        """Called once after every optimiser step."""

    def plan(self, steps: int) -> None:
        """Called once before training with the number of steps it will take; only a schedule cares."""


class Fixed(Temperature):
    """Always the same; in the state dict, so that a resumed run cannot change it by accident."""

    value: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(_positive("temperature", value)))

    def forward(self) -> Tensor:
        return self.value


class Learnable(Temperature):
    """exp of a parameter, so that it stays positive, kept in [minimum, maximum] after every step.

    The parameter itself is clamped: a clamp inside `forward` would have no gradient beyond the bounds, and the
    temperature would stick there. As a scalar it has no weight decay (contrast.optim.groups). CLIP (Radford et al.
    2021, section 2.5) clips at 0.01.
    """

    def __init__(self, initial: float = 0.07, minimum: float = 0.01, maximum: float = 1.0) -> None:
        super().__init__()
        if not 0 < minimum <= initial <= maximum:
            raise InputError(
                f"a learnable temperature needs 0 < minimum <= initial <= maximum, got {minimum}, {initial}, {maximum}"
            )
        self.bounds = (math.log(minimum), math.log(maximum))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(initial)))

    def forward(self) -> Tensor:
        return self.log_temperature.exp()

    @torch.no_grad()
    def advance(self) -> None:
        self.log_temperature.clamp_(*self.bounds)


class Cosine(Temperature):
    """From `start` to `end` along half a cosine over `steps` optimiser steps, `end` from there on.

    `steps=None` takes the length of the training. After t steps the temperature is
    end + (start - end) (1 + cos(pi min(t, steps) / steps)) / 2.
    """

    step: Tensor
    steps: Tensor

    def __init__(self, start: float, end: float, steps: int | None = None) -> None:
        super().__init__()
        self.start, self.end = _positive("start temperature", start), _positive("end temperature", end)
        if steps is not None and steps < 1:
            raise InputError(f"a temperature schedule needs at least 1 step, got {steps}")
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.register_buffer("steps", torch.tensor(steps or 0))
        self.spans_training = steps is None

    def forward(self) -> Tensor:
        progress = (self.step / self.steps.clamp(min=1)).clamp(max=1)
        return self.end + (self.start - self.end) * (1 + torch.cos(math.pi * progress)) / 2

    def advance(self) -> None:
        self.step += 1

    def plan(self, steps: int) -> None:
        if self.spans_training:
            self.steps.fill_(steps)


def as_temperature(value: float | Temperature) -> Temperature:
    """A number is a fixed temperature."""
    return value if isinstance(value, Temperature) else Fixed(value)


def _positive(name: str, value: float) -> float:
    if not (isinstance(value, int | float) and 0 < value < math.inf):
        raise InputError(f"{name} must be a positive number, got {value!r}")
    return float(value)
