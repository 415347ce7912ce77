"""What a sampler is, and what samplers share: the random numbers and the number of classes.

N classes.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from contrast.errors import InputError


@runtime_checkable
class Sampler(Protocol):
    """A distribution q over the classes 0..N-1 from which classes are drawn independently, with replacement."""

    size: int  # N

    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Class ids int64 of that shape, on the device of the sampler's buffers.

        The random numbers are drawn where the generator lives, so a CPU generator gives the same ids on every device;
        without one they come from the default generator of the sampler's device.
        """

    def log_prob(self, ids: Tensor) -> Tensor:
        """log q of `ids` int64, float32 of the same shape. Ids outside 0..N-1 are not looked for."""


class Closed(nn.Module):
    """A distribution in closed form: N alone determines it. N is in the state dict, and loading another N is refused.

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
        self.register_load_state_dict_post_hook(_refuse_another_size)

    def extra_repr(self) -> str:
        return str(self.size)


def uniforms(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1) with 53 bits: float64, on the generator's device, or on `device` without one."""
    return torch.rand(shape, generator=generator, device=source(generator, device), dtype=torch.float64)


def source(generator: torch.Generator | None, device: torch.device) -> torch.device:
    """Where random numbers are drawn."""
    return device if generator is None else generator.device


def _refuse_another_size(module: nn.Module, _: object) -> None:
    assert isinstance(module, Closed)
    if int(module.classes) != module.size:
        raise InputError(f"a sampler over {module.size} classes cannot resume one over {int(module.classes)}")
