"""Colour: jitter (brightness, contrast, saturation, hue), greyscale and solarisation, with parameters per image.

N images [N, C, H, W], floats in 0..1. Of 1 or 3 channels, each operation equals torchvision's functional one; of
another number, grey is the mean of the channels and there is no hue.
Brightness, contrast and saturation are one operation with different numbers (`mix`). So the jitter, whose four
operations come in one of 24 orders, is three mixes and a change of hue; images differ only in how many of the mixes
come before the hue.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

GREY = (0.2989, 0.587, 0.114)  # ITU-R 601-2 luma, with torchvision's digits
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


class Steps(NamedTuple):
    """The jitter of N images of C channels: mixes 0 .. before - 1, then the hue, then mixes after .. 2."""

    matrix: Tensor  # [N, 3, C, C]
    mean: Tensor  # [N, 3, C]
    turn: Tensor  # [N] of a circle
    before: Tensor  # [N] int64
    after: Tensor  # [N] int64, equal to `before`, or 3 for an image that does not change


def jitter_steps(factors: Tensor, order: Tensor, channels: int) -> Steps:
    """The steps for given factors of brightness, contrast, saturation and hue.

    factors [N, 4]; (1, 1, 1, 0) changes nothing. order [N, 4] int64: each row is a permutation of 0..3 that says which
    of the four operations comes first, second, third and last.

    With factor f, brightness gives f x image, contrast f x image + (1 - f) x mean(greyscale(image)), and saturation
    f x image + (1 - f) x greyscale(image), all clamped to 0..1.
    """
    place = (order == HUE).int().argmax(dim=1, keepdim=True)  # [N, 1]
    step = torch.arange(3, device=order.device)
    change = order.gather(1, step + (step >= place))  # [N, 3]: the operations other than the hue, in order
    factor = factors.gather(1, change)
    luma = GREY if channels == 3 else (1 / channels,) * channels
    rest = [(1 - factor) * (change == kind) for kind in (SATURATION, CONTRAST)]
    grey, mean = (torch.stack([weight * share for share in luma], dim=-1) for weight in rest)  # [N, 3, C]
    identity = torch.eye(channels, dtype=factor.dtype, device=factor.device)
    matrix = factor[..., None, None] * identity + grey[..., None, :]
    changes = (factor != 1).any(dim=1)
    if channels != 3:
        place = torch.zeros_like(place)  # these images have no hue, so every mix comes after it
    return Steps(matrix, mean, factors[:, HUE], place[:, 0] * changes, torch.where(changes, place[:, 0], 3))


def jitter_(images: Tensor, steps: Steps) -> Tensor:
    """images [N, C, H, W] with colour jitter; may overwrite them."""
    mixes = list(zip(steps.matrix.unbind(dim=1), steps.mean.unbind(dim=1), strict=True))
    if images.shape[1] == 3:
        for step, numbers in enumerate(mixes):
            images = apply_where_(images, step < steps.before, mix, *numbers)
        images = apply_where_(images, steps.turn != 0, hue, steps.turn)
    for step, numbers in enumerate(mixes):
        images = apply_where_(images, step >= steps.after, mix, *numbers)
    return images


def mix(images: Tensor, matrix: Tensor, mean: Tensor) -> Tensor:
    """matrix @ pixel + mean . (each channel's mean), clamped to 0..1; matrix [N, C, C], mean [N, C]."""
    flat = images.flatten(2)  # [N, C, H W]
    offset = (flat.mean(dim=2) * mean).sum(dim=1)  # [N]
    return torch.baddbmm(offset[:, None, None], matrix, flat).clamp_(0, 1).view_as(images)


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """The hue of HSV moved by `turn` [N] of a full circle, -0.5..0.5, at the same saturation and value; 3 channels.

    Let m be the smallest of a pixel's channels, c their range, and r', g', b' = (channel - m) / c. The hue in sixths of
    a circle, with red at 0, is +-(1 - r' + g' + b') with the sign of g - b: one formula for all six sectors. In the
    other direction, at hue h in 0..6, the channels are

        r' = clip(|h - 3| - 1),   g' = clip(2 - |h - 2|),   b' = clip(2 - |h - 4|).
    """
    red, green, blue = images.unbind(dim=1)  # [N, H, W]
    low = torch.minimum(red, green)
    low = torch.minimum(low, blue, out=low)
    span = torch.maximum(red, green)
    span = torch.maximum(span, blue, out=span).sub_(low)
    angle = (green + blue).sub_(red).sub_(low).add_(span)  # c (1 - r' + g' + b')
    angle.copysign_(green - blue).div_(span.clamp(min=1e-8))  # grey has no hue, but then c = 0 cancels any angle
    angle.add_(6 * turn[:, None, None])
    angle.sub_((angle * (1 / 6)).floor_(), alpha=6)  # -> 0..6
    out = torch.empty_like(images)
    base = low - span
    torch.addcmul(base, span, (angle - 3).abs_().clamp_(1, 2), out=out[:, 0])
    base.add_(span, alpha=3)
    torch.addcmul(base, span, (angle - 2).abs_().clamp_(1, 2), value=-1, out=out[:, 1])
    torch.addcmul(base, span, angle.sub_(4).abs_().clamp_(1, 2), value=-1, out=out[:, 2])
    return out


def greyscale(images: Tensor) -> Tensor:
    """The grey value in each of the 3 channels."""
    red, green, blue = images.split(1, dim=1)
    grey = (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])
    return grey.expand_as(images)


def solarise(images: Tensor, threshold: float = 0.5) -> Tensor:
    """1 - image wherever the image is at least `threshold`."""
    return torch.where(images >= threshold, 1 - images, images)


def apply_where_(images: Tensor, mask: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """`operation(images, *parameters)` where `mask` is true, the unchanged images elsewhere; may overwrite `images`.

    images [N, C, H, W], mask [N] bool, parameters [N] or [N, ...]. On a CPU the operation sees the masked rows only.
    On a GPU the host would have to wait to learn how many rows these are, so the operation sees every image and the
    result is selected afterwards.
    """
    if images.device.type != "cpu":
        return torch.where(mask[:, None, None, None], operation(images, *parameters), images)
    rows = mask.nonzero()[:, 0]
    if len(rows) == 0:
        return images
    if len(rows) == len(images):
        return operation(images, *parameters)
    selected = [tensor.index_select(0, rows) for tensor in (images, *parameters)]  # faster than images[rows]
    return images.index_copy_(0, rows, operation(*selected))
