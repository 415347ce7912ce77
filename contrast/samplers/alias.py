"""The alias method: a draw from any distribution over N classes costs one random number and two look-ups.

N columns. Column i holds class i with probability accept[i] and class alias[i] otherwise; a draw picks a column
uniformly, then one of its two classes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from contrast.errors import InputError
from contrast.samplers.contract import uniforms


class Alias(nn.Module):
    """Draws with replacement from weights [N] by Walker's alias method (1974), with Vose's table (1991).

    A class of weight 0 is never drawn. The table is in the state dict. Raises InputError for weights that are not a
    vector, are negative or not finite, or are all 0.
    """

    accept: Tensor  # [N] float32
    alias: Tensor  # [N] int64

    def __init__(self, weights: Tensor | np.ndarray | Sequence[float]) -> None:
        super().__init__()
        accept, alias = alias_table(weights)
        self.register_buffer("accept", torch.from_numpy(accept).float())
        self.register_buffer("alias", torch.from_numpy(alias))

    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Class ids int64 of that shape on the device of the table; the random numbers as in `Sampler.draw`."""
        device = self.accept.device
        position = uniforms(shape, generator, device) * len(self.accept)  # below N in float64 too, since u <= 1 - 2^-53
        column = position.long()
        residue = (position - column).float().to(device)  # uniform in its turn, and independent of the column
        column = column.to(device)
        return torch.where(residue < self.accept[column], column, self.alias[column])


def alias_table(weights: Tensor | np.ndarray | Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """`(accept [N] float64, alias [N] int64)` of weights [N], which need not sum to 1; in O(N log N), without a loop.

    With p = N weights / sum(weights), the weights are recovered as p[i] = accept[i] + the sum of 1 - accept[j] over
    the j whose alias is i. Where accept is 1 the alias is the class itself.

    This is Vose's table with his two lists kept as stacks. Light columns (p < 1) are filled up to 1 one after
    another, from the last class down, by heavy ones (p > 1), also from the last class down; a heavy column that falls
    below 1 is filled up in its turn by the next. With D(i) the deficits 1 - p of the first i light columns and E(j)
    the excesses p - 1 of the first j heavy ones, heavy column j has 1 + E(j) - D left once deficits D are filled. So
    light column i is filled by the first j with E(j) >= D(i - 1), and heavy column j falls to 1 + E(j) - D(i) at the
    first i with D(i) > E(j). (The same sweep makes the construction parallel in Huebschle-Schneider & Sanders 2019.)
    """
    p = relative(weights)
    p = p * (len(p) / p.sum())
    accept, alias = np.ones(len(p)), np.arange(len(p), dtype=np.int64)
    light, heavy = np.flatnonzero(p < 1)[::-1], np.flatnonzero(p > 1)[::-1]
    if not len(light) or not len(heavy):  # all equal, up to rounding
        return accept, alias
    deficit, excess = np.cumsum(1 - p[light]), np.cumsum(p[heavy] - 1)

    before = np.concatenate(([0.0], deficit[:-1]))
    filler = np.searchsorted(excess, before, side="left")
    accept[light] = p[light]
    alias[light] = heavy[np.minimum(filler, len(heavy) - 1)]  # past the end by rounding alone

    fall = np.searchsorted(deficit, excess[:-1], side="right")
    falls = np.flatnonzero(fall < len(light))  # the last column keeps 1, and so do others by rounding alone
    accept[heavy[falls]] = np.clip(1 + excess[falls] - deficit[fall[falls]], 0, 1)
    alias[heavy[falls]] = heavy[falls + 1]
    return accept, alias


def relative(values: Tensor | np.ndarray | Sequence[float], name: str = "weights") -> np.ndarray:
    """Values [N] divided by the largest, float64, so that no sum overflows.

    Raises InputError, which calls the values `name`, unless they are a vector of finite numbers, none of them negative
    and at least one above 0.
    """
    vector = torch.as_tensor(values, dtype=torch.float64, device="cpu").numpy()
    if vector.ndim != 1 or not len(vector):
        raise InputError(f"{name} must be a vector with at least 1 class, got shape {list(vector.shape)}")
    bad = np.flatnonzero(~(np.isfinite(vector) & (vector >= 0)))
    if len(bad):
        raise InputError(
            f"{name} must be finite and not negative, but class {bad[0]} of {len(vector)} has {vector[bad[0]]}"
        )
    if not vector.any():
        raise InputError(f"{name} must not all be 0, but those of all {len(vector)} classes are")
    return vector / vector.max()
