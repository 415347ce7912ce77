"""Random resized crop and horizontal flip.

N images, C channels, H x W pixels in, S x S pixels out. A box is (top, left, height, width) in whole pixels.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from contrast.views.separable import separable

ATTEMPTS = 10
BOX_UNIFORMS = 2 * ATTEMPTS + 2


def random_boxes(
    uniforms: Tensor, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """Boxes of Inception-style random crops (Szegedy et al. 2015, as in torchvision's `RandomResizedCrop`).

    Ten attempts at an area, uniform in `scale` x the image, and an aspect ratio, log-uniform in `ratio`; the first that
    fits the image counts, and if none does, the largest central box of an allowed ratio. The place is uniform.

    uniforms [N, 22] in [0, 1)  ->  boxes [N, 4], whole numbers in the dtype of `uniforms`.
    """
    areas, ratios, places = uniforms.split((ATTEMPTS, ATTEMPTS, 2), dim=1)
    areas = height * width * (scale[0] + (scale[1] - scale[0]) * areas)  # [N, 10]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratios = torch.exp(low + (high - low) * ratios)  # [N, 10]
    sizes = torch.stack((torch.sqrt(areas / ratios), torch.sqrt(areas * ratios))).round_()  # [2, N, 10]
    fits = (sizes[0] > 0) & (sizes[0] <= height) & (sizes[1] > 0) & (sizes[1] <= width)
    first = fits.int().argmax(dim=1)  # of equal values argmax gives the first
    sizes = sizes.gather(2, first.expand(2, 1, -1).mT)[..., 0]  # [2, N]
    room = torch.stack((height + 1 - sizes[0], width + 1 - sizes[1]))  # number of places along each axis
    boxes = ((places.mT * room).floor(), sizes)  # [2, N] each
    found = fits.any(dim=1)
    central = _central_box(height, width, ratio)
    return torch.stack([torch.where(found, *pair) for pair in zip(torch.cat(boxes), central, strict=True)], dim=1)


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """The largest central box whose width / height lies within `ratio`."""
    rows = min(height, round(width / ratio[0]))
    columns = min(width, round(height * ratio[1]))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


class Points(NamedTuple):
    """Where pixels lie, in units of the interpolation's reach: output pixel i takes source pixel j with weight
    max(0, 1 - |target i - source j|), normalised. A source pixel outside the box lies at infinity.
    """

    target_rows: Tensor  # [N, S]
    source_rows: Tensor  # [N, H]
    target_columns: Tensor  # [N, S]
    source_columns: Tensor  # [N, W]


def resized_crop(images: Tensor, boxes: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """Each image's box resampled to `size` x `size` by antialiased bilinear interpolation, then mirrored where `flip`.

    images [N, C, H, W] float, boxes [N, 4], flip [N] bool  ->  [N, C, S, S]. Equal to torchvision's
    `F.resized_crop(..., antialias=True)`; the mirror is folded into the resampling and costs nothing.
    """
    return resample(images, crop_points(boxes.to(images.dtype), images.shape[2], images.shape[3], size, flip))


def crop_points(boxes: Tensor, height: int, width: int, size: int, flip: Tensor | None = None) -> Points:
    """The points of `resized_crop` for images of height x width; boxes [N, 4] in the dtype of the images."""
    top, left, rows, columns = boxes[..., None].unbind(dim=1)  # [N, 1] each
    return Points(*_points(top, rows, height, size), *_points(left, columns, width, size, flip))


def _points(start: Tensor, length: Tensor, source: int, size: int, flip: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Output pixel i lies at start + (i + 1/2) length / size; the reach is a pixel of the coarser of the two grids."""
    step = length / size
    reach = step.clamp(min=1)
    target = torch.arange(size, dtype=start.dtype, device=start.device) + 0.5  # [S]
    if flip is not None:
        target = torch.where(flip[:, None], size - target, target)  # [N, S]
    position = torch.arange(source, dtype=start.dtype, device=start.device) + 0.5  # [source]
    inside = (position > start) & (position < start + length)  # [N, source]
    return (start + step * target) / reach, torch.where(inside, position / reach, torch.inf)


def resample(images: Tensor, points: Points) -> Tensor:
    """images [N, C, H, W] at `points`  ->  [N, C, S, S]."""
    rows = _weights(points.target_rows, points.source_rows)
    return separable(images, rows, _weights(points.target_columns, points.source_columns))


def _weights(target: Tensor, source: Tensor) -> Tensor:
    """[N, S], [N, H]  ->  [N, S, H]."""
    weights = target[:, :, None] - source[:, None, :]
    weights = weights.abs_().sub_(1).clamp_(max=0)  # minus the weights: the sign leaves with the sum
    return weights.div_(weights.sum(dim=2, keepdim=True))


def horizontal_flip(images: Tensor, on: Tensor) -> Tensor:
    """images [N, C, H, W] mirrored left to right where on [N]."""
    return torch.where(on[:, None, None, None], images.flip(3), images)
