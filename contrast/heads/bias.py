"""What is added to every score: nothing, a learned number (SigLIP's bias, NCE's -log Z), or an estimate of -log Z."""

import math

import torch
from torch import Tensor, nn

from contrast.distributed import log_mean_exp_over_ranks
from contrast.errors import InputError


class Bias(nn.Module):
    """A bias: calling it gives a scalar tensor."""

    looks = False  # whether it wants the head's estimates of log Z

    def look(self, log_z: Tensor) -> None:
        """Called by the head in training with its estimate of log Z from the batch's noise; only `Estimated` cares."""

    def advance(self) -> None:
        """Called once after every optimiser step."""


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
    """A parameter: SigLIP starts at -10 (Zhai et al. 2023, section 3.2), NCE at -log Z (Mnih and Teh 2012)."""

    def __init__(self, initial: float = -10.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(float(initial)))

    def forward(self) -> Tensor:
        return self.value


class Estimated(Bias):
    """-log Z, Z a running mean of its estimates from noise (the constant of Wu et al. 2018, section 3.2, kept current).

    The head estimates Z as the mean over queries of sum_j exp(s_j) / (k q_j) over the noise, which is unbiased. The
    estimate of one batch varies by orders of magnitude, so over the first `warmup` steps Z is the mean of all so far,
    and from there an exponential mean: Z <- momentum Z + (1 - momentum) estimate. Kept as a logarithm, with the number
    of steps, in the state dict; the same on every rank. Before the first step it is the batch's own estimate. A batch
    without noise changes nothing.
    """

    looks = True

    log_z: Tensor
    steps: Tensor

    def __init__(self, momentum: float = 0.99, warmup: int = 100) -> None:
        super().__init__()
        if not 0 <= momentum < 1 or warmup < 1:
            raise InputError(f"an estimate of Z needs momentum in [0, 1) and warmup of 1 or more: {momentum}, {warmup}")
        self.momentum, self.warmup = momentum, warmup
        self.register_buffer("log_z", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.seen: list[Tensor] = []  # estimates since the last step: one for each direction and accumulated batch

    def forward(self) -> Tensor:
        if not self.seen:
            return -self.log_z
        return -torch.where((self.steps > 0) | self.seen[-1].isneginf(), self.log_z, self.seen[-1])

    def look(self, log_z: Tensor) -> None:
        self.seen.append(log_mean_exp_over_ranks(log_z.detach().float()))

    @torch.no_grad()
    def advance(self) -> None:
        if not self.seen:
            return
        estimate = torch.stack(self.seen).logsumexp(dim=0) - math.log(len(self.seen))
        self.seen = []
        keep = torch.where(self.steps < self.warmup, self.steps / (self.steps + 1), self.momentum)
        mixed = torch.logaddexp(self.log_z + keep.log(), estimate + (1 - keep).log())
        some = ~estimate.isneginf()
        self.log_z.copy_(torch.where(some, mixed, self.log_z))
        self.steps += some


def as_bias(value: float | Bias) -> Bias:
    """A number is a fixed bias."""
    return value if isinstance(value, Bias) else FixedBias(value)
