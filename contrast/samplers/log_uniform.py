"""Log-uniform noise, close to Zipf's law: for classes sorted by falling frequency whose counts are not at hand."""

import math

import torch
from torch import Tensor

from contrast.samplers.contract import Closed, uniforms


class LogUniform(Closed):
    """q(k) = log((k + 2) / (k + 1)) / log(N + 1): a `Sampler`. Class 0 is the most frequent.

    The default noise of TensorFlow's sampled softmax and NCE. A draw inverts the cumulative distribution function
    F(k) = log(k + 2) / log(N + 1), at the same cost for every N.
    """

    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        device = self.classes.device
        return inverse_cdf(uniforms(shape, generator, device), self.size).to(device)

    def log_prob(self, ids: Tensor) -> Tensor:
        return (ids + 1).float().reciprocal().log1p().log() - math.log(math.log1p(self.size))


def inverse_cdf(uniform: Tensor, size: int) -> Tensor:
    """The class k with F(k - 1) <= u < F(k) of numbers u in [0, 1): k = floor((N + 1)^u) - 1.

    In float64: near u = 1 a step of float32 passes over whole classes once N exceeds a million. The bound is for an exp
    that is not rounded correctly and reaches N + 1.
    """
    return (uniform.double() * math.log1p(size)).exp().long().sub(1).clamp(max=size - 1)
