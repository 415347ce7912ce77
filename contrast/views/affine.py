"""Rotation and translation, each image with its own."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def affine(images: Tensor, angle: Tensor, shift: Tensor, scale: Tensor | None = None) -> Tensor:
    """Images scaled and turned about their centre, then moved; bilinear, black outside.

    images [N, C, H, W] float; angle [N] in degrees, clockwise; shift [N, 2] in pixels, right and down; scale [N],
    1 if absent. Equal to torchvision's `F.affine(..., interpolation=BILINEAR)`.
    """
    height, width = images.shape[2:]
    radians = angle.to(images.dtype) * (math.pi / 180)
    stretch = 1.0 if scale is None else 1 / scale
    cos, sin = torch.cos(radians) * stretch, torch.sin(radians) * stretch  # [N]
    # An output pixel p, from the centre, takes the input at R(-angle) (p - shift) / scale: the way back.
    turn = torch.stack((cos, sin, -sin, cos), dim=1).view(-1, 2, 2)  # [N, 2, 2]
    x = torch.arange(width, dtype=images.dtype, device=images.device) - (width - 1) / 2
    y = torch.arange(height, dtype=images.dtype, device=images.device) - (height - 1) / 2
    target = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).view(1, height * width, 2)
    source = (target - shift.to(images.dtype)[:, None]) @ turn.mT  # [N, H W, 2] @ [N, 2, 2], in pixels
    source = torch.stack((source[..., 0] * (2 / width), source[..., 1] * (2 / height)), dim=-1)  # -> -1..1
    grid = source.view(-1, height, width, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
