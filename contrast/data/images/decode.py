"""Decoding one image file."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from contrast.data.store import one_line
from contrast.errors import InputError

_MODES = {1: "L", 3: "RGB"}


class UnreadableImage(InputError):
    """An image of a data set that cannot be read, or a row of a table without an image or a caption."""


def decode(path: Path, channels: int = 3, image_size: int | None = None) -> np.ndarray:
    """The image in `path` as uint8 [C, H, W], turned upright as its EXIF orientation says.

    With `image_size` the shorter side is resized to it (bilinear, antialiased) and the centre square is kept.
    Sixteen-bit greyscale is scaled to eight bits; transparency is dropped. Raises UnreadableImage.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
            if image.mode in ("I", "F"):
                raise ValueError("32-bit pixels have no agreed range; save the image with 8 bits")
            image = image.convert(_MODES[channels])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{path} is not a readable image ({one_line(error)})") from error
    if image_size is not None:
        image = _square(image, image_size)
    return np.asarray(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)


def check_on_error(on_error: str) -> None:
    if on_error not in ("raise", "skip"):
        raise InputError(f"on_error must be raise or skip, not {on_error!r}")


def _square(image: Image.Image, size: int) -> Image.Image:
    scale = size / min(image.size)
    width, height = max(size, round(image.width * scale)), max(size, round(image.height * scale))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)  # Pillow widens the filter when it shrinks
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
