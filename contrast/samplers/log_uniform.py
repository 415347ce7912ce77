"""The log-uniform distribution, close to Zipf's law: for classes sorted by falling frequency whose counts are unknown.

N classes.
"""

import math

import torch
from torch import Tensor

from contrast.samplers.contract import ClosedForm, check_ids, uniforms


class LogUniform(ClosedForm):
    """q(k) = log((k + 2) / (k + 1)) / log(N + 1): a `Sampler`. Class 0 is the most frequent.

    TensorFlow draws from this distribution by default in its sampled softmax and NCE losses. A draw inverts the
    cumulative distribution function F(k) = log(k + 2) / log(N + 1), so it costs the same for every N.
    """

    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        device = self.classes.device
        return inverse_cdf(uniforms(shape, generator, device), self.size).to(device)

    def log_prob(self, ids: Tensor) -> Tensor:
        ids = check_ids(ids, self.size)
        return (ids + 1).float().reciprocal().log1p().log() - math.log(math.log1p(self.size))


def inverse_cdf(uniform: Tensor, size: int) -> Tensor:
    """The class k with F(k - 1) <= u < F(k) of numbers u in [0, 1): k = floor((N + 1)^u) - 1.

    Computed in float64, because near u = 1 a step of float32 skips whole classes once N exceeds a million. The result
    is at most N - 1 even if exp is rounded up to N + 1.
    """
    return (uniform.double() * math.log1p(size)).exp().long().sub(1).clamp(max=size - 1)
