"""Poisson sampling: every class is in the sample or not, independently of all others.

The sample then holds no class twice, and the log of its inclusion probabilities is the exact correction of a sampled
softmax whose accidental hits are removed. N classes, K expected.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from contrast.errors import InputError
from contrast.samplers.alias import Alias, relative
from contrast.samplers.contract import Sampler, source


class Poisson(nn.Module):
    """Class i is in the sample with probability pi_i, independently of all others (Hajek 1964).

    noise     a sampler: pi = `inclusion(noise, expected)`; or, without `expected`, the pi [N] in [0, 1] themselves
    expected  K = sum(pi), the mean length of a sample

    A draw does not visit the N classes. A Poisson process on a line gives class i a segment of length
    rate_i = -log(1 - pi_i): at least one point falls on it with probability 1 - exp(-rate_i) = pi_i, and points on
    disjoint segments are independent. So sum(rate) points are drawn on average, each from the alias table of the
    rates, and the classes that were hit are the sample. sum(rate) is K where all pi are small, 1.4 K where they are
    1/2, 4.7 K at 0.99; classes with pi = 1 are added to every sample.

    Raises InputError for probabilities outside [0, 1] or all 0, and as `inclusion`.
    """

    always: Tensor  # [A] int64, the classes with pi = 1
    rate: Tensor  # scalar float32, sum of the rates of all others
    log_pi: Tensor  # [N] float32
    size: int

    def __init__(self, noise: Sampler | Tensor | np.ndarray | Sequence[float], expected: float | None = None) -> None:
        super().__init__()
        pi = _probabilities(noise, expected)  # [N]
        self.size = len(pi)
        rate = -np.log1p(-pi, out=np.zeros_like(pi), where=pi < 1)  # [N]
        self.points = Alias(rate if rate.any() else np.ones_like(rate))  # without a rate no point is drawn
        self.register_buffer("always", torch.from_numpy(np.flatnonzero(pi == 1)).long())
        self.register_buffer("rate", torch.tensor(rate.sum(), dtype=torch.float32))
        self.register_buffer("log_pi", torch.from_numpy(pi).log().float())

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """Distinct class ids [n] int64, ascending, on the device of the buffers; n is random and may be 0.

        The random numbers as in `Sampler.draw`. On a GPU a draw waits for the device, to learn n.
        """
        device = source(generator, self.rate.device)
        points = int(torch.poisson(self.rate.to(device).double(), generator))
        return torch.cat((self.always, self.points.draw((points,), generator))).unique()

    def log_inclusion(self, ids: Tensor) -> Tensor:
        """log pi of `ids` int64, float32 of the same shape; -inf where the class is never in a sample."""
        return self.log_pi[ids].float()


def inclusion(noise: Sampler | Tensor, expected: float) -> Tensor:
    """Inclusion probabilities [N] float64 in proportion to q as far as they can be: pi = min(1, c q), sum(pi) = K.

    noise     a sampler, or its log q [N]
    expected  K, above 0 and at most the number of classes with q > 0; it need not be an integer

    With q sorted downwards and its first m classes at 1, c = (K - m) / sum of the other q; m is the least for which no
    other class exceeds 1. The result lies on the CPU. Raises InputError for another K, and for log q that are not those
    of a distribution over at least one class.
    """
    log_q = noise if isinstance(noise, Tensor) else noise.log_prob(torch.arange(noise.size))
    q = torch.from_numpy(relative(log_q.detach().double().exp(), "q"))  # [N], up to a factor
    drawable = int((q > 0).sum())
    if not 0 < expected <= drawable:
        raise InputError(f"a sample of {expected} classes is expected, but {drawable} of {len(q)} classes have q > 0")
    if expected == drawable:
        return (q > 0).double()  # exactly, whatever the rounding below
    falling = q.sort(descending=True).values
    others = falling.flip(0).cumsum(0).flip(0)  # [N], sum of q from here on
    room = expected - torch.arange(len(q), dtype=torch.float64)  # [N], K - m
    first = int((room * falling <= others).int().argmax())  # m, which is below K: a q does not exceed the sum of them
    return (q * (room[first] / others[first])).clamp(max=1)


def _probabilities(noise: Sampler | Tensor | np.ndarray | Sequence[float], expected: float | None) -> np.ndarray:
    sampler = isinstance(noise, Sampler)
    if sampler != (expected is not None):
        given = "a sampler" if sampler else "probabilities"
        raise InputError(
            f"Poisson takes a sampler and an expected number, or probabilities, not {given} and {expected}"
        )
    if isinstance(noise, Sampler):
        assert expected is not None
        return inclusion(noise, expected).numpy()
    pi = torch.as_tensor(noise, dtype=torch.float64, device="cpu").numpy()
    relative(pi, "inclusion probabilities")
    if pi.max() > 1:
        raise InputError(f"inclusion probabilities must lie in [0, 1], but class {pi.argmax()} has {pi.max()}")
    return pi
