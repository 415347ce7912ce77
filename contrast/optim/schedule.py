"""The learning rate as a function of the optimiser step, in closed form: a resumed run continues it exactly.

Both schedules return a `LambdaLR` that is stepped once after every optimiser step.
"""

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from contrast.errors import InputError


def warmup_cosine_factor(step: int, total_steps: int, warmup_steps: int, final: float) -> float:
    """Share of the base learning rate at step s = 0, 1, ... of T, with W steps of warm-up.

        (s + 1) / (W + 1)                                        s < W
        final + (1 - final) (1 + cos(pi (s - W) / (T - W))) / 2  W <= s <= T
        final                                                    s > T

    The first step is above 0, step W has the whole rate, and the rate would reach `final` at step T, one after the
    last: no step is wasted on a rate of 0.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def warmup_cosine(
    optimizer: Optimizer,
    total_steps: int,
    warmup_fraction: float = 0.05,
    warmup_steps: int | None = None,
    final: float = 0.0,
) -> LambdaLR:
    """Linear warm-up, then half a cosine down to `final` times the base rate (Loshchilov & Hutter 2017, eq. 5).

    The warm-up takes `warmup_steps`, or if None that fraction of `total_steps`, rounded. InputError unless
    0 <= warm-up < total_steps and 0 <= final <= 1.
    """
    warmup = _warmup(total_steps, warmup_fraction, warmup_steps)
    if not 0 <= final <= 1:
        raise InputError(f"a cosine ends at a share of the learning rate in [0, 1], not {final}")
    return LambdaLR(optimizer, partial(warmup_cosine_factor, total_steps=total_steps, warmup_steps=warmup, final=final))


def constant_factor(step: int, warmup_steps: int) -> float:
    """min(1, (s + 1) / (W + 1)) at step s, with W steps of warm-up."""
    return min(1.0, (step + 1) / (warmup_steps + 1))


def constant(
    optimizer: Optimizer, total_steps: int, warmup_fraction: float = 0.0, warmup_steps: int | None = None
) -> LambdaLR:
    """The base rate throughout, after a warm-up as in `warmup_cosine`."""
    warmup = _warmup(total_steps, warmup_fraction, warmup_steps)
    return LambdaLR(optimizer, partial(constant_factor, warmup_steps=warmup))


def _warmup(total_steps: int, fraction: float, steps: int | None) -> int:
    warmup = round(fraction * total_steps) if steps is None else steps
    if not 0 <= warmup < total_steps:
        raise InputError(f"a warm-up of {warmup} steps does not fit a training of {total_steps}")
    return warmup
