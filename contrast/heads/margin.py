"""Margins lower the cosine of a positive, so that it has to exceed the negatives by more. Functions of the cosine."""

import math

import torch
from torch import Tensor, nn

from contrast.errors import InputError

_EDGE = 1e-7  # the least 1 - cos^2 whose root is differentiated: the derivative is infinite at 0


class CosFace(nn.Module):
    """cos - m (Wang et al. 2018, eq. 4; the additive margin of Wang et al. 2018b).

    m  between 0 and 2
    """

    def __init__(self, m: float = 0.35) -> None:
        super().__init__()
        self.m = _in_range("CosFace", m, 2)

    def forward(self, cosine: Tensor) -> Tensor:
        return cosine - self.m


class ArcFace(nn.Module):
    """cos(theta + m) (Deng et al. 2019, eq. 3).

    m  in radians, between 0 and pi
    Beyond theta = pi - m, where it would rise again, it goes on as cos(theta) - m sin(m), as in the authors' code.
    """

    def __init__(self, m: float = 0.5) -> None:
        super().__init__()
        self.m = _in_range("ArcFace", m, math.pi)

    def forward(self, cosine: Tensor) -> Tensor:
        squared = 1 - cosine.square()
        sine = squared.clamp(min=_EDGE).sqrt()
        sine = sine + (squared.clamp(min=0).sqrt() - sine).detach()  # exact at the edge, with a finite gradient
        turned = cosine * math.cos(self.m) - sine * math.sin(self.m)
        return torch.where(cosine > -math.cos(self.m), turned, cosine - self.m * math.sin(self.m))


class LSoftmax(nn.Module):
    """psi(theta) = (-1)^k cos(m theta) - 2k for theta in [k pi / m, (k + 1) pi / m] (Liu et al. 2016, eq. 5).

    m          a whole number, at least 1
    annealing  weight of the plain cosine: (annealing cos + psi) / (1 + annealing). The authors lower it in training
    With dot products it is L-Softmax, with unit class vectors A-Softmax (Liu et al. 2017).
    """

    def __init__(self, m: int = 4, annealing: float = 0.0) -> None:
        super().__init__()
        if m != int(m) or m < 1 or annealing < 0:
            raise InputError(f"L-Softmax needs a whole m of at least 1 and annealing of at least 0: {m}, {annealing}")
        self.m, self.annealing = int(m), annealing

    def forward(self, cosine: Tensor) -> Tensor:
        before, multiple = torch.ones_like(cosine), cosine  # cos(0), cos(theta)
        for _ in range(self.m - 1):  # Chebyshev: cos((n + 1) theta) = 2 cos(theta) cos(n theta) - cos((n - 1) theta)
            before, multiple = multiple, 2 * cosine * multiple - before
        turns = torch.zeros_like(cosine)  # k
        for j in range(1, self.m):
            turns = turns + (cosine < math.cos(j * math.pi / self.m))
        psi = (1 - 2 * (turns % 2)) * multiple - 2 * turns
        return (self.annealing * cosine + psi) / (1 + self.annealing)


def _in_range(name: str, m: float, end: float) -> float:
    if not 0 <= m < end:
        raise InputError(f"the margin of {name} lies in [0, {end:.4g}), got {m}")
    return float(m)
