"""The two building blocks of operations that treat every image of a batch differently."""

from collections.abc import Callable

import torch
from torch import Tensor


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`rows @ image @ columns.T` for every channel of every image.

    images [N, C, H, W], rows [N, Y, H], columns [N, X, W]  ->  [N, C, Y, X].

    Resampling and blurring both have this form. Small batched matrix products run near the peak speed of a CPU or a
    GPU; gathering pixels one by one does not.
    """
    count, channels, height, width = images.shape
    across = torch.bmm(images.reshape(count, channels * height, width), columns.mT)  # [N, C H, W] @ [N, W, X]
    return rows[:, None] @ across.view(count, channels, height, columns.shape[1])  # [N, 1, Y, H] @ [N, C, H, X]


def apply_where_(images: Tensor, mask: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """`operation(images, *parameters)` where `mask` is true, the unchanged images elsewhere; may overwrite `images`.

    images [N, C, H, W], mask [N] bool, parameters [N] or [N, ...]. On a CPU the operation sees the masked rows only.
    On a GPU the host would have to wait to learn how many rows these are, so the operation sees every image and the
    result is selected afterwards.
    """
    if images.device.type != "cpu":
        return torch.where(mask[:, None, None, None], operation(images, *parameters), images)
    rows = mask.nonzero()[:, 0]
    if len(rows) == 0:
        return images
    if len(rows) == len(images):
        return operation(images, *parameters)
    selected = [tensor.index_select(0, rows) for tensor in (images, *parameters)]  # faster than images[rows]
    return images.index_copy_(0, rows, operation(*selected))
