"""Distributions that the number of classes alone determines: uniform, and log-uniform, which is close to Zipf's law.

N classes.
"""

import math

import torch
from torch import Tensor, nn

from contrast.candidates import as_rows
from contrast.errors import InputError
from contrast.samplers.contract import uniforms


class ClosedForm(nn.Module):
    """A distribution that N alone determines. N is in the state dict, and loading another N raises InputError.

    Raises InputError for less than one class.
    """

    classes: Tensor
    size: int

    def __init__(self, num_ids: int) -> None:
        super().__init__()
        if num_ids < 1:
            raise InputError(f"a sampler needs at least 1 class, got {num_ids}")
        self.size = num_ids
        self.register_buffer("classes", torch.tensor(num_ids))
        self.register_load_state_dict_post_hook(ClosedForm._check_size)

    def _check_size(self, _: object) -> None:
        if int(self.classes) != self.size:
            raise InputError(f"a sampler over {self.size} classes cannot resume one over {int(self.classes)}")

    def extra_repr(self) -> str:
        return str(self.size)


class Uniform(ClosedForm):
    """q = 1 / N: a `Sampler`. The noise of memory-bank NCE (Wu et al. 2018, section 3.2)."""

    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        device = self.classes.device
        drawn_on = generator.device if generator else device
        ids = torch.randint(self.size, shape, generator=generator, device=drawn_on)
        return ids.to(device)

    def log_prob(self, ids: Tensor) -> Tensor:
        return torch.full_like(as_rows(ids, self.size), -math.log(self.size), dtype=torch.float32)


class LogUniform(ClosedForm):
    """q(k) = log((k + 2) / (k + 1)) / log(N + 1): a `Sampler`. Classes are sorted by falling frequency.

    TensorFlow draws from this distribution by default in its sampled softmax and NCE losses. A draw inverts the
    cumulative distribution function F(k) = log(k + 2) / log(N + 1), so it costs the same for every N.
    """

    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        device = self.classes.device
        return inverse_cdf(uniforms(shape, generator, device), self.size).to(device)

    def log_prob(self, ids: Tensor) -> Tensor:
        ids = as_rows(ids, self.size)
        return (ids + 1).float().reciprocal().log1p().log() - math.log(math.log1p(self.size))


def inverse_cdf(uniform: Tensor, size: int) -> Tensor:
    """The class k with F(k - 1) <= u < F(k) of numbers u in [0, 1): k = floor((N + 1)^u) - 1.

    Computed in float64, because near u = 1 a step of float32 skips whole classes once N exceeds a million. The result
    is at most N - 1 even if exp is rounded up to N + 1.
    """
    return (uniform.double() * math.log1p(size)).exp().long().sub(1).clamp(max=size - 1)
