"""Colour jitter: brightness, contrast, saturation and hue, in an order of its own for each image.

Brightness, contrast and saturation are one operation with other numbers (`colour.mix`). So instead of 24 orders there
are three mixes, and the only question is how many of them come before the hue.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from contrast.views.choose import choose_
from contrast.views.colour import hue, mix, mixing

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


class Steps(NamedTuple):
    """The jitter of N images of C channels: mixes 0 .. before - 1, then the hue, then mixes after .. 2."""

    matrix: Tensor  # [N, 3, C, C]
    mean: Tensor  # [N, 3, C]
    turn: Tensor  # [N] of a circle
    before: Tensor  # [N] int64
    after: Tensor  # [N] int64, equal to `before`, or 3 where nothing changes


def jitter_steps(factors: Tensor, order: Tensor, channels: int) -> Steps:
    """factors [N, 4] of brightness, contrast, saturation and hue (1, 1, 1, 0 change nothing); order [N, 4] int64, each
    row a permutation of 0..3: which of the four comes first, second, third and last.
    """
    place = (order == HUE).int().argmax(dim=1, keepdim=True)  # [N, 1]
    step = torch.arange(3, device=order.device)
    change = order.gather(1, step + (step >= place))  # [N, 3]: those that are not the hue, in order
    own = factors.gather(1, change)
    rest = 1 - own
    matrix, mean = mixing(own, rest * (change == SATURATION), rest * (change == CONTRAST), channels)
    some = (own != 1).any(dim=1)
    if channels == 1:
        place = torch.zeros_like(place)  # no hue, so no mix has to come before it
    return Steps(matrix, mean, factors[:, HUE], place[:, 0] * some, torch.where(some, place[:, 0], 3))


def jitter_(images: Tensor, steps: Steps) -> Tensor:
    """images [N, C, H, W] jittered; may overwrite them."""
    mixes = list(zip(steps.matrix.unbind(dim=1), steps.mean.unbind(dim=1), strict=True))
    for step, numbers in enumerate(mixes):
        if images.shape[1] == 3:
            images = choose_(images, step < steps.before, mix, *numbers)
    if images.shape[1] == 3:
        images = choose_(images, steps.turn != 0, hue, steps.turn)
    for step, numbers in enumerate(mixes):
        images = choose_(images, step >= steps.after, mix, *numbers)
    return images
