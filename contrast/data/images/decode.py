"""Decoding one image file, and which files are images.

Pillow reads them. Where they are installed, pillow-heif reads photographs of phones (.heic, .heif, .avif), and tifffile
reads TIFF files that Pillow cannot: of other numbers of bands, or with several bands of more than 8 bits.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from contrast.errors import InputError, one_line, shown

try:
    import pillow_heif
except ImportError:
    pillow_heif = None
else:
    pillow_heif.register_heif_opener()
try:
    import tifffile
except ImportError:
    tifffile = None

HEIF = (".heic", ".heif")
TIFF = (".tif", ".tiff")
_MODES = {1: "L", 3: "RGB"}
_NO_DECODER = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # formats that Pillow knows by name and does not decode


class UnreadableImage(InputError):
    """An image of a data set that cannot be read, or a row of a table without an image or a caption."""


class UnreachableImage(InputError):
    """An image whose bytes do not come, so that nobody knows whether it can be read: it is never skipped."""


@lru_cache
def suffixes() -> tuple[str, ...]:
    """The suffixes of files that are read as images, in lower case."""
    known = Image.registered_extensions().items()  # loads every format of Pillow's
    return tuple(sorted(suffix for suffix, kind in known if kind in Image.OPEN and kind not in _NO_DECODER))


def decode(
    path: Path | BytesIO,
    channels: int = 3,
    image_size: int | None = None,
    value_range: Sequence[float] | None = None,
    fast_jpeg: bool = False,
) -> np.ndarray:
    """The image in the file `path`, or in its bytes, as uint8 [C, H, W], turned upright as its EXIF orientation says.

    With `image_size` the shorter side is resized to it (bilinear, antialiased) and the centre square is kept.
    `value_range` gives the values of black and white where a pixel has more than eight bits; by default 0 and 65535 for
    sixteen-bit files, and none for others. Transparency is dropped, unless it is one of 4 channels.

    `fast_jpeg` decodes a JPEG at a half, a quarter or an eighth of its size, where its shorter side is then still at
    least twice `image_size`: libjpeg averages in the frequency domain, which takes a part of the time. Pixels differ
    slightly (docs/data.md).

    Raises UnreadableImage.
    """
    try:
        if isinstance(path, Path) and not path.is_file() and path.exists():
            raise ValueError("no regular file")  # a pipe would be waited for, a device might never end
        if isinstance(path, Path) and path.is_symlink() and not path.exists():
            raise ValueError(f"it is a link to {shown(os.readlink(path))}, which does not exist")
        bands = _bands(path, channels, value_range, 2 * image_size if fast_jpeg and image_size else None)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        name = shown(path) if isinstance(path, Path) else "its data"
        raise UnreadableImage(f"{name} is not a readable image ({one_line(error)})") from error
    return _joined(bands, image_size)


def to_pixels(
    image: Image.Image, channels: int = 3, image_size: int | None = None, value_range: Sequence[float] | None = None
) -> np.ndarray:
    """An image of Pillow as uint8 [C, H, W], as `decode` reads one from a file. ValueError for what has no range."""
    return _joined(_converted(image, channels, value_range), image_size)


def highest(path: Path | BytesIO) -> int | None:
    """The highest value of a sixteen-bit greyscale image; None for another image and for none."""
    if isinstance(path, Path) and not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            return int(np.asarray(image).max()) if image.mode.startswith("I;16") else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def check_on_error(on_error: str) -> None:
    if on_error not in ("raise", "skip"):
        raise InputError(f"on_error must be raise or skip, not {on_error!r}")


def _bands(
    path: Path | BytesIO, channels: int, value_range: Sequence[float] | None, smallest: int | None
) -> list[Image.Image]:
    """The image as one of Pillow's, or as one for each channel; a JPEG reduced if both sides stay above `smallest`."""
    try:
        with Image.open(path) as opened:
            if smallest is not None and opened.format == "JPEG":
                opened.draft(opened.mode, (smallest, smallest))
            return _converted(opened, channels, value_range)
    except (OSError, SyntaxError, ValueError):
        if tifffile is None or not isinstance(path, Path) or path.suffix.lower() not in TIFF:
            raise
        return _tiff_bands(path, channels, value_range)


def _converted(opened: Image.Image, channels: int, value_range: Sequence[float] | None) -> list[Image.Image]:
    opened.load()  # the orientation may stand behind the pixels
    is_turned = opened.getexif().get(ExifTags.Base.Orientation, 1) != 1
    image = ImageOps.exif_transpose(opened) if is_turned else opened  # a copy takes a fifth of the time to decode
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = Image.fromarray(_eight_bits(np.asarray(image), value_range))
    if channels in _MODES:
        mode = _MODES[channels]
        return [image if image.mode == mode else image.convert(mode)]
    if len(image.getbands()) != channels:
        raise ValueError(f"it has {len(image.getbands())} channels, not {channels}")
    return [image]


def _joined(bands: list[Image.Image], image_size: int | None) -> np.ndarray:
    """The bands as one array [C, H, W]; with `image_size` the centre square of that size."""
    if image_size is not None:
        bands = [_square(band, image_size) for band in bands]
    arrays = [np.asarray(band).reshape(band.height, band.width, -1) for band in bands]
    return (arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=2)).transpose(2, 0, 1)


def _tiff_bands(path: Path, channels: int, value_range: Sequence[float] | None) -> list[Image.Image]:
    try:
        values = np.asarray(tifffile.imread(path))  # [H, W], [H, W, C] or [C, H, W]
    except Exception as error:  # damaged bytes raise nearly anything
        raise ValueError(one_line(error)) from error
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim == 3 and values.shape[2] != channels and values.shape[0] == channels:
        values = values.transpose(1, 2, 0)
    if values.ndim != 3 or values.shape[2] not in (1, channels):
        raise ValueError(f"its shape is {list(values.shape)}, not [H, W, {channels}]")
    if values.dtype != np.uint8:
        values = _eight_bits(values, value_range)
    if values.shape[2] == 1:
        values = values.repeat(channels, axis=2)
    return [Image.fromarray(np.ascontiguousarray(values[:, :, channel])) for channel in range(channels)]


def _eight_bits(values: np.ndarray, value_range: Sequence[float] | None) -> np.ndarray:
    if value_range is None and values.dtype.kind == "u" and values.dtype.itemsize == 2:
        value_range = (0, 65535)
    if value_range is None:
        raise ValueError(
            f"{8 * values.dtype.itemsize}-bit pixels have no agreed range; these are in "
            f"{np.nanmin(values):.6g}..{np.nanmax(values):.6g}, and data.range=[LOW,HIGH] says what is black and white"
        )
    low, high = value_range
    share = (np.nan_to_num(values.astype(np.float64)) - low) / (high - low)
    return (255 * share).round().clip(0, 255).astype(np.uint8)


def _square(image: Image.Image, size: int) -> Image.Image:
    scale = size / min(image.size)
    width, height = max(size, round(image.width * scale)), max(size, round(image.height * scale))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)  # Pillow widens the filter when it shrinks
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
