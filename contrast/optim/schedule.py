"""The schedules of the learning rate, as functions of the optimiser step.

They are closed formulas of the step, so that a resumed run continues them exactly. Each returns a `LambdaLR`
that is stepped once after every optimiser step. Their `total_steps` is the length T of the training, and None or
infinity if that is unknown, as in a training that ends after a given time: the rate is then constant after the warm-up.
"""

import math
import warnings
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from contrast.errors import InputError


def warmup_cosine_factor(step: int, total_steps: float, warmup_steps: int, final: float) -> float:
    """The factor on the base learning rate at step s = 0, 1, ... of T, with W steps of warm-up.

        (s + 1) / (W + 1)                                        s < W
        final + (1 - final) (1 + cos(pi (s - W) / (T - W))) / 2  W <= s <= T
        final                                                    s > T

    The first factor is above 0 and that of step W is 1. The factor would reach `final` at step T, one after the last
    step, so that no step is spent on a rate of 0.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def warmup_cosine(
    optimizer: Optimizer,
    total_steps: float | None,
    warmup_fraction: float = 0.05,
    warmup_steps: int | None = None,
    final: float = 0.0,
) -> LambdaLR:
    """Linear warm-up, then half a cosine down to `final` times the base rate (Loshchilov & Hutter 2017, eq. 5).

    The warm-up takes `warmup_steps` steps; if that is None, `warmup_fraction` of `total_steps`, rounded. There is no
    fraction of an unknown length, so that such a training starts without warm-up, with a warning. Raises InputError
    unless 0 <= warm-up < total_steps and 0 <= final <= 1.
    """
    total = math.inf if total_steps is None else total_steps
    if warmup_steps is None:
        if total == math.inf and warmup_fraction:
            warnings.warn(f"no warm-up: {warmup_fraction=} of an unknown length; set warmup_steps", stacklevel=2)
        warmup_steps = 0 if total == math.inf else round(warmup_fraction * total)
    if not 0 <= warmup_steps < total:
        raise InputError(f"a warm-up of {warmup_steps} steps does not fit a training of {total_steps}")
    if not 0 <= final <= 1:
        raise InputError(f"a cosine ends at a fraction of the learning rate in [0, 1], not {final}")
    factor = partial(warmup_cosine_factor, total_steps=total, warmup_steps=warmup_steps, final=final)
    return LambdaLR(optimizer, factor)


def constant(
    optimizer: Optimizer,
    total_steps: float | None = None,
    warmup_fraction: float = 0.0,
    warmup_steps: int | None = None,
) -> LambdaLR:
    """The base rate throughout, after a warm-up as in `warmup_cosine`."""
    return warmup_cosine(optimizer, total_steps, warmup_fraction, warmup_steps, final=1.0)
