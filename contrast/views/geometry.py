"""Where the pixels of a view come from: rotation and translation, random resized crop, horizontal flip.

N images, C channels, H x W pixels in, S x S pixels out. A box is (top, left, height, width) in whole pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ATTEMPTS = 10
BOX_UNIFORMS = 2 * ATTEMPTS + 2
BLOCK = 56  # output pixels of a product with a band of weights
LARGE = 112  # pixels a side, from which on a CPU resamples image by image


def affine(images: Tensor, angle: Tensor, shift: Tensor) -> Tensor:
    """Images rotated about their centre, then translated; bilinear, black outside.

    images [N, C, H, W] float; angle [N] in degrees, clockwise; shift [N, 2] in pixels, right and down. Equal to
    torchvision's `F.affine(..., scale=1.0, interpolation=BILINEAR)`.
    """
    height, width = images.shape[2:]
    radians = angle.to(images.dtype) * (math.pi / 180)
    cos, sin = torch.cos(radians), torch.sin(radians)  # [N]
    # The inverse map: the output pixel at p (from the centre) takes the input at R(-angle) (p - shift).
    turn = torch.stack((cos, sin, -sin, cos), dim=1).view(-1, 2, 2)  # [N, 2, 2]
    x = torch.arange(width, dtype=images.dtype, device=images.device) - (width - 1) / 2
    y = torch.arange(height, dtype=images.dtype, device=images.device) - (height - 1) / 2
    target = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).view(1, height * width, 2)
    source = (target - shift.to(images.dtype)[:, None]) @ turn.mT  # [N, H W, 2] @ [N, 2, 2], in pixels
    source = torch.stack((source[..., 0] * (2 / width), source[..., 1] * (2 / height)), dim=-1)  # -> -1..1
    grid = source.view(-1, height, width, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def random_boxes(
    uniforms: Tensor, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """Boxes of Inception-style random crops (Szegedy et al. 2015, as in torchvision's `RandomResizedCrop`).

    There are ten attempts. Each draws an area, uniform in `scale` times the image's, and an aspect ratio, log-uniform
    in `ratio`. The first box that fits into the image is taken; if none fits, the largest central box whose ratio is
    allowed. The position is uniform.

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
    positions = torch.stack((height + 1 - sizes[0], width + 1 - sizes[1]))  # how many there are along each axis
    boxes = torch.cat(((places.mT * positions).floor(), sizes))  # [4, N]
    central_rows = min(height, round(width / ratio[0]))
    central_columns = min(width, round(height * ratio[1]))
    central = ((height - central_rows) // 2, (width - central_columns) // 2, central_rows, central_columns)
    fitted = fits.any(dim=1)
    return torch.stack([torch.where(fitted, *pair) for pair in zip(boxes, central, strict=True)], dim=1)


def resample(images: Tensor, boxes: Tensor, size: int, flip: Tensor) -> Tensor:
    """images [N, C, H, W] float, each cropped to its box, resized and mirrored where `flip`  ->  [N, C, S, S].

    Antialiased bilinear interpolation, equal to torchvision's `F.resized_crop(..., antialias=True)` and `F.hflip`.
    boxes [N, 4] in the dtype of the images, flip [N] bool.
    """
    height, width = images.shape[2:]
    if images.device.type == "cpu" and max(height, width, size) >= LARGE:
        return resample_each(images, boxes, size, flip)
    top, left, rows, columns = boxes[..., None].unbind(dim=1)  # [N, 1] each
    # the flip only changes the matrix of the columns, so it costs nothing
    return separable(images, _weights(top, rows, height, size), _weights(left, columns, width, size, flip))


def _weights(start: Tensor, length: Tensor, source: int, size: int, flip: Tensor | None = None) -> Tensor:
    """The weight of each source pixel in each output pixel along one axis: start, length [N, 1]  ->  [N, S, source].

    Output pixel i has its centre at start + (i + 1/2) length / size. It takes source pixel j in the box with weight
    max(0, 1 - |distance of their centres| / radius), normalised over j. The radius is one pixel of the coarser of the
    two grids.
    """
    step = length / size
    radius = step.clamp(min=1)
    target = torch.arange(size, dtype=start.dtype, device=start.device) + 0.5  # [S]
    if flip is not None:
        target = torch.where(flip[:, None], size - target, target)  # [N, S]
    position = torch.arange(source, dtype=start.dtype, device=start.device) + 0.5  # [source]
    inside = (position > start) & (position < start + length)  # [N, source]
    position = torch.where(inside, position / radius, torch.inf)
    weights = ((start + step * target) / radius)[:, :, None] - position[:, None, :]
    weights = weights.abs_().sub_(1).clamp_(max=0)  # minus the weights: dividing by their sum removes the sign
    return weights.div_(weights.sum(dim=2, keepdim=True))


def resample_each(images: Tensor, boxes: Tensor, size: int, flip: Tensor) -> Tensor:
    """As `resample`, image by image: faster on a CPU for large images, of whose weights nearly all are zero.

    boxes [N, 4] in whole pixels, flip [N] bool.
    """
    views = images.new_empty(len(images), images.shape[1], size, size)
    for view, image, box, flipped in zip(views, images, boxes.int().tolist(), flip.tolist(), strict=True):
        top, left, rows, columns = box
        crop = image[None, :, top : top + rows, left : left + columns]
        made = F.interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]
        view.copy_(made.flip(2) if flipped else made)
    return views


def separable(images: Tensor, rows: Tensor, columns: Tensor, reach: int | None = None) -> Tensor:
    """`rows @ image @ columns.T` for every channel of every image.

    images [N, C, H, W], rows [N, Y, H], columns [N, X, W]  ->  [N, C, Y, X].
    reach  of square weights: they are zero farther than this from the diagonal; None: not known

    Resampling and blurring both have this form. Small batched matrix products run near the peak speed of a CPU or a
    GPU; gathering pixels one by one does not.
    """
    count, channels, height, width = images.shape
    flat = images.reshape(count, channels * height, width)
    across = [torch.bmm(flat[..., near], columns[:, at, near].mT) for at, near in _blocks(columns, reach)]
    wide = _joined(across, 2).view(count, channels, height, columns.shape[1])
    return _joined([rows[:, None, at, near] @ wide[:, :, near] for at, near in _blocks(rows, reach)], 2)


def _blocks(weights: Tensor, reach: int | None) -> list[tuple[slice, slice]]:
    """Blocks of output pixels on a CPU, each with the input pixels on which it depends."""
    size = weights.shape[1]
    if reach is None or weights.device.type != "cpu" or size < 2 * BLOCK:
        return [(slice(None), slice(None))]
    starts = range(0, size, BLOCK)
    return [(slice(at, at + BLOCK), slice(max(0, at - reach), at + BLOCK + reach)) for at in starts]


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    """The parts behind each other; a single one as it is, without a copy."""
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]
