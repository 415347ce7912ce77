"""Separable linear maps of images: one small matrix per image for its rows and one for its columns.

N images, C channels, H x W pixels in, Y x X pixels out.
"""

import torch
from torch import Tensor


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`rows @ image @ columns.T` for every channel of every image.

    images [N, C, H, W], rows [N, Y, H], columns [N, X, W]  ->  [N, C, Y, X].

    Resampling and blurring a whole batch, each image with its own parameters, are both of this form, and small batched
    matrix products run near the peak of a CPU or a GPU where gathering pixels does not.
    """
    count, channels, height, width = images.shape
    across = torch.bmm(images.reshape(count, channels * height, width), columns.mT)  # [N, C H, W] @ [N, W, X]
    return rows[:, None] @ across.view(count, channels, height, columns.shape[1])  # [N, 1, Y, H] @ [N, C, H, X]
