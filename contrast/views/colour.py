"""Brightness, contrast, saturation, hue, greyscale and solarisation, each image with its own parameters.

N images [N, C, H, W] of 1 or 3 channels, floats in 0..1; factors [N]. On one channel saturation, hue and greyscale are
the identity. Each function equals torchvision's functional operation.
"""

import torch
from torch import Tensor

GREY = (0.2989, 0.587, 0.114)  # ITU-R 601-2 luma, with torchvision's digits


def mix(images: Tensor, matrix: Tensor, mean: Tensor) -> Tensor:
    """matrix @ pixel + mean . (each channel's mean), clamped to 0..1; matrix [N, C, C], mean [N, C].

    Brightness, contrast and saturation are all of this form, so that images whose next change is another one pass
    through it together.
    """
    flat = images.flatten(2)  # [N, C, H W]
    offset = (flat.mean(dim=2) * mean).sum(dim=1)  # [N]
    return torch.baddbmm(offset[:, None, None], matrix, flat).clamp_(0, 1).view_as(images)


def mixing(own: Tensor, grey: Tensor, mean: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """The arguments of `mix` for own x image + grey x greyscale(image) + mean x mean(greyscale(image)).

    Weights [...]  ->  matrix [..., C, C], mean [..., C].
    """
    luma = GREY if channels == 3 else (1.0,)
    grey, mean = (torch.stack([weight * share for share in luma], dim=-1) for weight in (grey, mean))  # [..., C]
    diagonal = torch.eye(channels, dtype=own.dtype, device=own.device)
    return own[..., None, None] * diagonal + grey[..., None, :], mean


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """factor x image, clamped: black at 0, unchanged at 1."""
    zero = torch.zeros_like(factor)
    return mix(images, *mixing(factor, zero, zero, images.shape[1]))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """The image blended with its mean grey: flat at 0, unchanged at 1."""
    return mix(images, *mixing(factor, torch.zeros_like(factor), 1 - factor, images.shape[1]))


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """The image blended with its greyscale: grey at 0, unchanged at 1."""
    return mix(images, *mixing(factor, 1 - factor, torch.zeros_like(factor), images.shape[1]))


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """The hue of HSV moved by `turn` [N] of a full circle, -0.5..0.5; saturation and value stay.

    With m the smallest and c the range of a pixel's channels, and r', g', b' = (channel - m) / c, the hue in sixths of
    a circle, red at 0, is +-(1 - r' + g' + b') with the sign of g - b: one line for all six sectors. Back again, at
    hue h in 0..6, the channels are

        r' = clip(|h - 3| - 1),   g' = clip(2 - |h - 2|),   b' = clip(2 - |h - 4|).
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(dim=1)  # [N, H, W]
    low = torch.minimum(red, green)
    low = torch.minimum(low, blue, out=low)
    span = torch.maximum(red, green)
    span = torch.maximum(span, blue, out=span).sub_(low)
    angle = (green + blue).sub_(red).sub_(low).add_(span)  # c (1 - r' + g' + b')
    angle.copysign_(green - blue).div_(span.clamp(min=1e-8))  # grey has no hue: c = 0 undoes whatever comes out
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
    """The grey value in every channel."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    grey = (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])
    return grey.expand_as(images)


def solarise(images: Tensor, threshold: float = 0.5) -> Tensor:
    """1 - image wherever the image is at least `threshold`."""
    return torch.where(images >= threshold, 1 - images, images)
