"""The scalars of a score: the temperature that it is divided by and the bias that is added to it.

A temperature is fixed, learnable or scheduled. A bias is fixed, learned (SigLIP's bias, NCE's -log Z) or an estimate of
-log Z. The state of both is in the state dict.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from contrast.distributed import log_mean_exp_over_ranks
from contrast.errors import InputError
from contrast.losses.modules import LearnableTemperature


class Scalar(nn.Module):
    """A scalar tensor: calling it gives the current value."""

    def plan(self, steps: int) -> None:
        """Called once before training with the number of steps it will take. Only a schedule uses it."""

    def advance(self) -> None:
        """Called once after every optimiser step."""


class ScalarOwner(nn.Module):
    """A module whose scalars, its own and those of its parts, are planned and advanced together."""

    def plan(self, steps: int) -> None:
        """Called once before training with the number of optimiser steps it will take."""
        for scalar in self.scalars():
            scalar.plan(steps)

    def advance(self) -> None:
        """Called once after every optimiser step."""
        for scalar in self.scalars():
            scalar.advance()

    def scalars(self) -> list[Scalar]:
        return [part for part in self.modules() if isinstance(part, Scalar)]


class Temperature(Scalar):
    """Divides the similarities."""


class Fixed(Temperature):
    """Always the same. It is in the state dict, so that a resumed run cannot change it by accident."""

    value: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(_positive("temperature", value)))

    def forward(self) -> Tensor:
        return self.value


class Learnable(Temperature, LearnableTemperature):
    """exp of a parameter, so that it stays positive, kept in [minimum, maximum] after every step.

    As a scalar it has no weight decay (contrast.optim.groups). CLIP (Radford et al. 2021, section 2.5) clips at 0.01.

    initial           the temperature at the start
    minimum, maximum  its bounds
    """

    def forward(self) -> Tensor:
        return self.log_temperature.exp()

    @torch.no_grad()
    def advance(self) -> None:
        self.log_temperature.clamp_(*self.bounds)


class Cosine(Temperature):
    """From `start` to `end` along half a cosine over `steps` optimiser steps, `end` from there on.

    start, end  the temperature before the first step, and after the last
    steps       the length of the schedule; None: that of the training, which `plan` passes
    After t steps the temperature is end + (start - end) (1 + cos(pi min(t, steps) / steps)) / 2.
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
        """Raises InputError for a schedule whose length was never set: it would jump to its end."""
        if not self.steps:
            raise InputError(
                "a temperature schedule needs its length: Cosine(..., steps=N), or plan(N) before training"
            )
        self.step += 1

    def plan(self, steps: int) -> None:
        if self.spans_training:
            self.steps.fill_(steps)


class Bias(Scalar):
    """Is added to every score."""

    needs_log_z = False  # whether it uses the head's estimates of log Z

    def observe_log_z(self, log_z: Tensor) -> None:
        """Called by the head in training with its estimate of log Z from the batch. Only `Estimated` uses it."""


class FixedBias(Bias):
    """Always the same; in the state dict."""

    value: Tensor

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        if not math.isfinite(value):
            raise InputError(f"a bias must be finite, got {value}")
        self.register_buffer("value", torch.tensor(float(value)))

    def forward(self) -> Tensor:
        return self.value


class LearnedBias(Bias):
    """A parameter: SigLIP starts at -10 (Zhai et al. 2023, section 3.2), NCE at -log Z (Mnih and Teh 2012).

    initial  the bias at the start
    """

    def __init__(self, initial: float = -10.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(float(initial)))

    def forward(self) -> Tensor:
        return self.value


class Estimated(Bias):
    """-log Z, with Z a running mean of its estimates from noise. In Wu et al. (2018, section 3.2) Z is a constant.

    The head's estimate of one batch (`contrast.losses.logistic.log_partition`) is unbiased, but varies by orders of
    magnitude. So over the first `warmup` steps Z is the mean of all estimates so far, and from there an exponential
    mean: Z <- momentum Z + (1 - momentum) estimate. Its logarithm and the number of steps are in the state dict, the
    same on every rank. Before the first step Z is the batch's own estimate. A batch without noise changes nothing.

    momentum  of the exponential mean
    warmup    steps over which Z is the plain mean
    """

    needs_log_z = True

    log_z: Tensor
    steps: Tensor

    def __init__(self, momentum: float = 0.99, warmup: int = 100) -> None:
        super().__init__()
        if not 0 <= momentum < 1 or warmup < 1:
            raise InputError(f"an estimate of Z needs momentum in [0, 1) and warmup of 1 or more: {momentum}, {warmup}")
        self.momentum, self.warmup = momentum, warmup
        self.register_buffer("log_z", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.pending: list[Tensor] = []  # estimates since the last step: one for each direction and accumulated batch

    def forward(self) -> Tensor:
        if not self.pending:
            return -self.log_z
        return -torch.where((self.steps > 0) | self.pending[-1].isneginf(), self.log_z, self.pending[-1])

    def observe_log_z(self, log_z: Tensor) -> None:
        log_z = log_z.detach().float()
        several_ranks = dist.is_available() and dist.is_initialized()
        self.pending.append(log_mean_exp_over_ranks(log_z) if several_ranks else log_z)

    def plan(self, steps: int) -> None:
        self.pending = []  # of a step that was interrupted

    @torch.no_grad()
    def advance(self) -> None:
        if not self.pending:
            return
        estimate = torch.stack(self.pending).logsumexp(dim=0) - math.log(len(self.pending))
        self.pending = []
        keep = torch.where(self.steps < self.warmup, self.steps / (self.steps + 1), self.momentum)
        mixed = torch.logaddexp(self.log_z + keep.log(), estimate + (1 - keep).log())
        some = ~estimate.isneginf()
        self.log_z.copy_(torch.where(some, mixed, self.log_z))
        self.steps += some


def as_temperature(value: float | Temperature) -> Temperature:
    """A number is a fixed temperature."""
    return value if isinstance(value, Temperature) else Fixed(value)


def as_bias(value: float | Bias) -> Bias:
    """A number is a fixed bias."""
    return value if isinstance(value, Bias) else FixedBias(value)


def _positive(name: str, value: float) -> float:
    if not (isinstance(value, int | float) and 0 < value < math.inf):
        raise InputError(f"{name} must be a positive number, got {value!r}")
    return float(value)
