"""Gaussian blur with a standard deviation per image.

N images [N, C, H, W] of floats; the kernel has the radius R and is 2 R + 1 pixels wide.
"""

import functools

import torch
from torch import Tensor

from contrast.views.geometry import separable

REACH = 7  # standard deviations; farther off a tap is below 1e-10 of the middle one, or a slow denormal number


def blur_radius(size: int) -> int:
    """The radius of SimCLR's kernel, which is about a tenth of the image wide: 3 of 32 pixels, 9 of 96, 23 of 224."""
    return max(1, size // 20)


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Images blurred with standard deviations sigma [N] in pixels; the borders are reflected.

    Equal to torchvision's `gaussian_blur(image, 2 * radius + 1, sigma)`. `radius` has to be less than both sides.
    """
    distance = torch.arange(radius + 1, dtype=images.dtype, device=images.device)
    away = distance / sigma[:, None]
    taps = torch.exp(-0.5 * away.square()) * (away < REACH)  # [N, R + 1]
    taps = taps / (2 * taps.sum(dim=1, keepdim=True) - taps[:, :1])  # normalised: both sides count, the middle once
    height, width = images.shape[2:]
    rows = _convolution(taps, height)
    return separable(images, rows, rows if width == height else _convolution(taps, width), radius)


def _convolution(taps: Tensor, size: int) -> Tensor:
    """The convolution with taps [N, R + 1], one per distance from the middle, as matrices [N, size, size]."""
    basis = _basis(taps.shape[1] - 1, size, taps.dtype, taps.device)
    return (taps @ basis.flatten(1)).view(-1, size, size)  # [N, R + 1] @ [R + 1, size size]


@functools.lru_cache(maxsize=8)
def _basis(radius: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Matrices [R + 1, size, size]: row i of `basis[d] @ x` sums the pixels at distance d from pixel i."""
    pixel = torch.arange(size, device=device)
    offset = torch.arange(-radius, radius + 1, device=device)[:, None]  # [2 R + 1, 1]
    source = size - 1 - (size - 1 - (pixel + offset).abs()).abs()  # reflected into the image
    basis = torch.zeros(radius + 1, size, size, dtype=dtype, device=device)
    return basis.index_put_((offset.abs(), pixel, source), basis.new_ones(()), accumulate=True)
