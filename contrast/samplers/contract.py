"""What a sampler is, and what samplers share: checks of their input, and where random numbers are drawn.

N classes.
"""

from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from contrast.errors import InputError

Values: TypeAlias = Tensor | np.ndarray | Sequence[float]


@runtime_checkable
class Sampler(Protocol):
    """A distribution q over the classes 0..N-1 from which classes are drawn independently, with replacement."""

    size: int  # N

    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Class ids int64 of that shape, on the device of the sampler's buffers.

        The random numbers are drawn on the generator's device, so a CPU generator gives the same ids on every device.
        Without a generator they come from the default generator of the sampler's device.
        """

    def log_prob(self, ids: Tensor) -> Tensor:
        """log q of `ids` int64, float32 of the same shape.

        Raises InputError for ids on the CPU outside 0..N-1 (`as_rows`). Ids on a GPU are not checked.
        """


def as_array(values: Values, dtype: torch.dtype = torch.float64) -> np.ndarray:
    """Numbers as a numpy array on the CPU. torch refuses numpy arrays with negative strides, so they are copied."""
    values = values.copy() if isinstance(values, np.ndarray) else values
    return torch.as_tensor(values, dtype=dtype, device="cpu").numpy()


def check_weights(values: Values, name: str) -> np.ndarray:
    """Values [N] as float64.

    Raises InputError, which calls the values `name`, unless they are a vector of finite numbers of which none is
    negative and at least one is positive.
    """
    vector = as_array(values)
    if vector.ndim != 1 or not len(vector):
        raise InputError(f"{name} must be a vector with at least 1 class, got shape {list(vector.shape)}")
    bad = np.flatnonzero(~(np.isfinite(vector) & (vector >= 0)))
    if len(bad):
        first = f"class {bad[0]} of {len(vector)} has {vector[bad[0]]}"
        raise InputError(f"{name} must be finite and not negative, but {first}")
    if not vector.any():
        raise InputError(f"{name} must not all be 0, but those of all {len(vector)} classes are")
    return vector


def uniforms(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1) with 53 random bits: float64, on the generator's device, or on `device` without one."""
    return torch.rand(shape, generator=generator, device=generator.device if generator else device, dtype=torch.float64)
