"""A picture of images and their views, to check the augmentation before training on it."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import write_png
from torchvision.utils import make_grid


def grid(pixels: Tensor, views: Sequence[Tensor], images: int = 8, side: int = 64) -> Tensor:
    """One row per image: the original, then its views.

    pixels [B, C, H, W] uint8 or floats in 0..1, views V x [B, C, S, S] floats in 0..1  ->  [3, height, width] uint8 on
    the CPU. The picture shows the first `images` of the batch, each resized to `side` x `side` pixels by nearest
    neighbour, which adds no blur.
    """
    original = pixels[:images].cpu()
    original = original / 255 if original.dtype == torch.uint8 else original.float()
    columns = [original, *(view[:images].detach().float().cpu() for view in views)]
    tiles = torch.stack([F.interpolate(column, size=(side, side), mode="nearest") for column in columns], dim=1)
    picture = make_grid(tiles.flatten(0, 1), nrow=len(columns), padding=2, pad_value=1.0)
    return (picture * 255).round_().clamp_(0, 255).to(torch.uint8)


def save_grid(path: str | Path, pixels: Tensor, views: Sequence[Tensor], images: int = 8, side: int = 64) -> None:
    """Write `grid` to a PNG file."""
    write_png(grid(pixels, views, images, side), str(path))
