"""Uniform noise."""

import math

import torch
from torch import Tensor

from contrast.samplers.contract import Closed, source


class Uniform(Closed):
    """q = 1 / N: a `Sampler`. The noise of memory-bank NCE (Wu et al. 2018, section 3.2)."""

    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        device = self.classes.device
        ids = torch.randint(self.size, shape, generator=generator, device=source(generator, device))
        return ids.to(device)

    def log_prob(self, ids: Tensor) -> Tensor:
        return torch.full_like(ids, -math.log(self.size), dtype=torch.float32)
