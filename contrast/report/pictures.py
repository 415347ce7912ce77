"""Small pictures of many images in one JPEG, so that the page stays small."""

import io
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from contrast.data.images.image_set import ImageFiles, Images
from contrast.report.page import data_uri

LEAST, MOST, MOST_OF_MANY, MANY = 32, 96, 64, 600  # sides of a tile in pixels; tiles of more images than MANY are small
QUALITY = 80
_BLOCK = 256


def sprite(images: Images | ImageFiles, rows: Tensor) -> dict[str, object]:
    """The images at `rows` [N] as tiles of one JPEG, row by row: its address, the size of a tile, the tiles in a row.

    Small images are enlarged without blur, by a whole factor. Of other than 1 or 3 channels the first 3 are shown, or
    the first of 2.
    """
    tiles = torch.cat(list(_tiles(images, rows)))  # [N, C, h, w]
    count, channels, height, width = tiles.shape
    columns = math.ceil(math.sqrt(count))
    sheet = F.pad(tiles, (0, 0, 0, 0, 0, 0, 0, columns * math.ceil(count / columns) - count))
    sheet = sheet.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).reshape(-1, columns * width, channels)
    file = io.BytesIO()
    # the colour of every pixel is kept: a tile may be as small as the blocks that share one
    Image.fromarray(sheet.squeeze(2).numpy()).save(file, "JPEG", quality=QUALITY, subsampling=0)
    uri = data_uri(file.getvalue(), "image/jpeg")
    return {"uri": uri, "width": width, "height": height, "columns": columns, "pixelated": images.size < LEAST}


def _tiles(images: Images | ImageFiles, rows: Tensor) -> Iterator[Tensor]:
    most = MOST if len(rows) <= MANY else MOST_OF_MANY
    for block in rows.split(_BLOCK):
        pixels = images.take(block).pixels.cpu()
        pixels = pixels[:, : 3 if pixels.shape[1] >= 3 else 1]
        side = min(pixels.shape[2:])
        factor = math.ceil(LEAST / side) if side < LEAST else min(1.0, most / side)
        if factor >= 1:
            yield pixels.repeat_interleave(int(factor), 2).repeat_interleave(int(factor), 3)
        else:
            small = F.interpolate(pixels.float(), scale_factor=factor, mode="bilinear", antialias=True)
            yield small.round().clamp(0, 255).to(torch.uint8)
