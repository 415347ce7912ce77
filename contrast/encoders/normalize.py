"""Normalisation of pixels, which is saved and loaded with every encoder."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from contrast.errors import InputError


class Normalize(nn.Module):
    """(pixels - mean) / std for each channel, [B, C, H, W] uint8 or floats in 0..1 -> floats of the same shape.

    `mean` and `std`, C numbers each of pixels in 0..1, are in the state dict. Raises InputError for another C.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Iterable[float], std: Iterable[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.shape[1] != self.mean.shape[1]:
            raise InputError(f"the encoder takes {self.mean.shape[1]} channels, the images have {pixels.shape[1]}")
        if pixels.dtype == torch.uint8:
            pixels = pixels / 255
        return (pixels - self.mean) / self.std
