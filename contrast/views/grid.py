"""A picture of images and their views, to check the augmentation before training on it."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

LEAST, MOST = 128, 256  # pixels of a side: small images are enlarged, so that their blur can be judged
BORDER, HEAD, FONT = 2, 24, 13  # pixels between images, of the headings, and of their letters


def grid(pixels: Tensor, views: Sequence[Tensor], images: int = 8, side: int | None = None) -> Tensor:
    """One row per image: the original, then its views.

    pixels [B, C, H, W] uint8 or floats in 0..1, views V x [B, C, S, S] floats in 0..1  ->  [3, height, width] uint8 on
    the CPU. The picture shows the first `images` of the batch, each with `side` x `side` pixels; None: those of the
    largest, enlarged by a whole factor to at least `LEAST`, and at most `MOST`. Enlarging adds no blur. Of other than 1
    or 3 channels, the first 3 are shown, or the first of 2.
    """
    original = pixels[:images].cpu()
    original = original / 255 if original.dtype == torch.uint8 else original.float()
    columns = [original, *(view[:images].detach().float().cpu() for view in views)]
    if side is None:
        largest = max(column.shape[-1] for column in columns)
        side = min(MOST, largest * math.ceil(LEAST / largest))
    tiles = torch.stack([_resized(column, side) for column in columns], dim=1)
    tiles = tiles[:, :, : 1 if tiles.shape[2] < 3 else 3]
    picture = make_grid(tiles.flatten(0, 1), nrow=len(columns), padding=BORDER, pad_value=1.0)
    return (picture * 255).round_().clamp_(0, 255).to(torch.uint8)


def _resized(column: Tensor, side: int) -> Tensor:
    if max(column.shape[2:]) <= side:
        return F.interpolate(column, size=(side, side), mode="nearest")
    return F.interpolate(column, size=(side, side), mode="bilinear", antialias=True)


def save_grid(
    path: str | Path, pixels: Tensor, views: Sequence[Tensor], images: int = 8, side: int | None = None
) -> None:
    """Write `grid` to a PNG file, below a heading for each column: what it is, and its size."""
    picture = grid(pixels, views, images, side)
    height, width = picture.shape[1:]
    sheet = Image.new("RGB", (width, HEAD + height), "white")
    sheet.paste(Image.fromarray(picture.permute(1, 2, 0).numpy()), (0, HEAD))
    shapes = [("original", pixels), *((f"view {number}", view) for number, view in enumerate(views, start=1))]
    step = (width - BORDER) // len(shapes)
    for number, (name, shown) in enumerate(shapes):
        text = f"{name}, {shown.shape[3]} x {shown.shape[2]}"
        place = (BORDER + number * step + 2, (HEAD - FONT) // 2)
        ImageDraw.Draw(sheet).text(place, text, fill="black", font=ImageFont.load_default(FONT))
    sheet.save(path, "PNG")
