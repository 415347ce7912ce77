"""An operation on some images of a batch, without making a GPU wait."""

from collections.abc import Callable

import torch
from torch import Tensor


def choose_(images: Tensor, on: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """`operation(images, *parameters)` for the images that are on, the others as they are; may overwrite `images`.

    images [N, C, H, W], on [N] bool, parameters [N] or [N, ...]. A CPU works on the chosen rows only. Elsewhere the
    host would have to wait to learn how many these are, so every image is computed and the result selected.
    """
    return (_pick_ if images.device.type == "cpu" else _select)(images, on, operation, *parameters)


def _select(images: Tensor, on: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    return torch.where(on[:, None, None, None], operation(images, *parameters), images)


def _pick_(images: Tensor, on: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    rows = on.nonzero()[:, 0]
    if len(rows) == 0:
        return images
    if len(rows) == len(images):
        return operation(images, *parameters)
    chosen = [tensor.index_select(0, rows) for tensor in (images, *parameters)]  # faster than images[rows]
    return images.index_copy_(0, rows, operation(*chosen))
