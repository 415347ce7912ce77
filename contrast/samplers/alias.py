"""The alias method, and the unigram distribution that draws by it: classes in proportion to a power of their counts.

A draw from any distribution over N classes costs one random number and two table look-ups.
The table has N columns. Column i holds class i with probability accept[i] and class alias[i] otherwise. A draw picks a
column uniformly, then one of its two classes.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from contrast.candidates import as_rows
from contrast.errors import InputError
from contrast.samplers.contract import Values, check_weights, uniforms


class Alias(nn.Module):
    """Draws with replacement from weights [N] by Walker's alias method (1974), with Vose's table (1991).

    A class of weight 0 is never drawn. The table is in the state dict. Raises InputError for weights that are not a
    vector, are negative or not finite, or are all 0.
    """

    accept: Tensor  # [N] float32
    alias: Tensor  # [N] int64

    def __init__(self, weights: Values) -> None:
        super().__init__()
        accept, alias = alias_table(weights)
        self.register_buffer("accept", torch.from_numpy(accept).float())
        self.register_buffer("alias", torch.from_numpy(alias))

    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Class ids int64 of that shape on the device of the table; the random numbers as in `Sampler.draw`."""
        device = self.accept.device
        position = uniforms(shape, generator, device) * len(self.accept)  # below N in float64 too, since u <= 1 - 2^-53
        column = position.long()
        residue = (position - column).float().to(device)  # uniform in [0, 1) and independent of the column
        column = column.to(device)
        return torch.where(residue < self.accept[column], column, self.alias[column])


class Unigram(Alias):
    """q(k) = counts[k]^power / sum of counts^power: a `Sampler`. A class with count 0 is never drawn.

    counts  [N], finite, none negative, not all 0; q of a 0 is 0 whatever the power
    power   0.75 is word2vec's (Mikolov et al. 2013, section 2.2), 0.5 fastText's, 1 the unigram distribution of NCE
            language models (Mnih & Teh 2012); below 0 rare classes are drawn more often, which can suit recommendation
            (Caselles-Dupre et al. 2018)

    Raises InputError for other counts, and for a power that is not finite.
    """

    log_q: Tensor  # [N] float32
    size: int

    def __init__(self, counts: Values, power: float = 0.75) -> None:
        if not math.isfinite(power):
            raise InputError(f"the power of a unigram distribution must be finite, got {power}")
        frequency = check_weights(counts, "counts")  # [N]
        frequency = frequency / frequency.max()  # so that no sum overflows
        counted = frequency > 0
        weights = np.power(frequency, power, out=np.zeros_like(frequency), where=counted)
        super().__init__(weights)
        self.size = len(weights)
        log_weights = power * np.log(frequency, out=np.zeros_like(frequency), where=counted)
        log_q = np.where(counted, log_weights - math.log(weights.sum()), -math.inf)
        self.register_buffer("log_q", torch.from_numpy(log_q).float())

    def log_prob(self, ids: Tensor) -> Tensor:
        """As `Sampler.log_prob`; -inf for a class that is never drawn."""
        return self.log_q[as_rows(ids, self.size)].float()


def alias_table(weights: Values) -> tuple[np.ndarray, np.ndarray]:
    """`(accept [N] float64, alias [N] int64)` of weights [N], which need not sum to 1; in O(N log N), without a loop.

    With p = N weights / sum(weights), p[i] = accept[i] + the sum of 1 - accept[j] over the j whose alias is i. Where
    accept is 1 the alias is the class itself.

    This is Vose's table with his two lists kept as stacks. Light columns (p < 1) are filled up to 1 one after
    another, from the last class down, by heavy ones (p > 1), also from the last class down. A heavy column that falls
    below 1 is in turn filled by the next heavy column. Let D(i) be the deficits 1 - p of the first i light columns and
    E(j) the excesses p - 1 of the first j heavy ones. Heavy column j has 1 + E(j) - D left once deficits D are filled,
    so light column i is filled by the first j with E(j) >= D(i - 1), and heavy column j falls to 1 + E(j) - D(i) at
    the first i with D(i) > E(j). (Huebschle-Schneider & Sanders 2019 use the same sweep for a parallel construction.)
    """
    p = check_weights(weights, "weights")
    p = p / p.max()  # so that no sum overflows
    p = p * (len(p) / p.sum())
    accept, alias = np.ones(len(p)), np.arange(len(p), dtype=np.int64)
    light, heavy = np.flatnonzero(p < 1)[::-1], np.flatnonzero(p > 1)[::-1]
    if not len(light) or not len(heavy):  # all equal, up to rounding
        return accept, alias
    deficit, excess = np.cumsum(1 - p[light]), np.cumsum(p[heavy] - 1)

    before = np.concatenate(([0.0], deficit[:-1]))
    filler = np.searchsorted(excess, before, side="left")
    accept[light] = p[light]
    alias[light] = heavy[np.minimum(filler, len(heavy) - 1)]  # the index exceeds the end only by rounding

    fall = np.searchsorted(deficit, excess[:-1], side="right")
    falls = np.flatnonzero(fall < len(light))  # the last heavy column keeps 1; by rounding others may too
    accept[heavy[falls]] = np.clip(1 + excess[falls] - deficit[fall[falls]], 0, 1)
    alias[heavy[falls]] = heavy[falls + 1]
    return accept, alias
