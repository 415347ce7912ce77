"""Poisson sampling: each class is in the sample or not, independently of all others.

The sample holds no class twice. The log of its inclusion probabilities is the exact correction of a sampled softmax
whose negatives leave out the query's own class. N classes, K expected.
"""

import numpy as np
import torch
from torch import Tensor, nn

from contrast.candidates import as_rows
from contrast.errors import InputError
from contrast.samplers.alias import Alias
from contrast.samplers.contract import Sampler, Values, check_weights


class Poisson(nn.Module):
    """Class i is in the sample with probability pi_i, independently of all others (Hajek 1964).

    distribution  a sampler, for pi = `inclusion(sampler, expected)`; or, without `expected`, pi [N] in [0, 1] itself
    expected      K = sum(pi), the mean length of a sample

    A draw does not visit all N classes. A Poisson process on a line gives class i a segment of length
    rate_i = -log(1 - pi_i). At least one point falls on it with probability 1 - exp(-rate_i) = pi_i, and points on
    disjoint segments are independent. So a draw takes Poisson(sum(rate)) points from the alias table of the rates, and
    the sample is the set of classes that were hit. sum(rate) is K where all pi are small, 1.4 K where they are 1/2,
    4.7 K at 0.99. Classes with pi = 1 are added to every sample.

    In a table the query's own class is left out of the noise, so a class that is the datum with probability p is noise
    with probability (1 - p) pi. With scores corrected by log pi, the optimal score under NCE is therefore
    log(p / (1 - p)), not log p; it differs from log p by less than 2 p where p < 1/2.

    Raises InputError for probabilities outside [0, 1] or all 0, and as `inclusion`.
    """

    always: Tensor  # [A] int64, the classes with pi = 1
    rate: Tensor  # scalar float32, sum of the rates of all others
    log_pi: Tensor  # [N] float32
    size: int

    def __init__(self, distribution: Sampler | Values, expected: float | None = None) -> None:
        super().__init__()
        pi = _probabilities(distribution, expected)  # [N]
        self.size = len(pi)
        rate = -np.log1p(-pi, out=np.zeros_like(pi), where=pi < 1)  # [N]
        self.points = Alias(rate if rate.any() else np.ones_like(rate))  # without a rate no point is drawn
        self.register_buffer("always", torch.from_numpy(np.flatnonzero(pi == 1)).long())
        self.register_buffer("rate", torch.tensor(rate.sum(), dtype=torch.float32))
        self.register_buffer("log_pi", torch.from_numpy(pi).log().float())

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """Distinct class ids [n] int64, ascending, on the device of the buffers; n is random and may be 0.

        The random numbers as in `Sampler.draw`. On a GPU a draw waits for the device, because the host needs n.
        """
        device = generator.device if generator else self.rate.device
        points = int(torch.poisson(self.rate.to(device).double(), generator))
        return torch.cat((self.always, self.points.draw((points,), generator))).unique()

    def log_inclusion(self, ids: Tensor) -> Tensor:
        """log pi of `ids` int64, float32 of the same shape; -inf for a class that is never in a sample.

        Ids outside 0..N-1 are refused as in `Sampler.log_prob`.
        """
        return self.log_pi[as_rows(ids, self.size)].float()


def inclusion(distribution: Sampler | Tensor, expected: float) -> Tensor:
    """Inclusion probabilities [N] float64, proportional to q but at most 1: pi = min(1, c q) with sum(pi) = K.

    distribution  a sampler, or its log q [N]
    expected      K, above 0 and at most the number of classes with q > 0; it need not be an integer

    With q sorted downwards and its first m classes at 1, c = (K - m) / sum of the other q, where m is the least number
    for which no other pi exceeds 1. The result is on the CPU. Raises InputError for another K, and for log q that are
    not those of a distribution over at least one class.
    """
    log_q = distribution if isinstance(distribution, Tensor) else distribution.log_prob(torch.arange(distribution.size))
    q = torch.from_numpy(check_weights(log_q.detach().double().exp(), "q"))  # [N]; only its proportions matter
    drawable = int((q > 0).sum())
    if not 0 < expected <= drawable:
        raise InputError(f"a sample of {expected} classes is expected, but {drawable} of {len(q)} classes have q > 0")
    if expected == drawable:
        return (q > 0).double()  # exactly, despite the rounding below
    falling = q.sort(descending=True).values
    others = falling.flip(0).cumsum(0).flip(0)  # [N], sum of q from here on
    room = expected - torch.arange(len(q), dtype=torch.float64)  # [N], K - m
    first = int((room * falling <= others).int().argmax())  # m < K, because no q exceeds the sum that it is part of
    return (q * (room[first] / others[first])).clamp(max=1)


def _probabilities(distribution: Sampler | Values, expected: float | None) -> np.ndarray:
    if isinstance(distribution, Sampler) and expected is not None:
        return inclusion(distribution, expected).numpy()
    if isinstance(distribution, Sampler) or expected is not None:
        given = "a sampler" if expected is None else "probabilities"
        raise InputError(
            f"Poisson takes a sampler and an expected number, or probabilities, not {given} and {expected}"
        )
    pi = check_weights(distribution, "inclusion probabilities")
    if pi.max() > 1:
        raise InputError(f"inclusion probabilities must be in [0, 1], but class {pi.argmax()} has {pi.max()}")
    return pi
