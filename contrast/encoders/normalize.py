"""Normalisation of pixels, a part of every encoder that is trained or loaded."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from contrast.errors import InputError


class Normalize(nn.Module):
    """uint8 or float-in-0..1 images [B, C, H, W] to zero mean and unit variance per channel; part of the state dict."""

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
