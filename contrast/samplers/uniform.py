"""The uniform distribution over N classes."""

import math

import torch
from torch import Tensor

from contrast.samplers.contract import ClosedForm, check_ids, random_device


class Uniform(ClosedForm):
    """q = 1 / N: a `Sampler`. The noise of memory-bank NCE (Wu et al. 2018, section 3.2)."""

    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        device = self.classes.device
        ids = torch.randint(self.size, shape, generator=generator, device=random_device(generator, device))
        return ids.to(device)

    def log_prob(self, ids: Tensor) -> Tensor:
        return torch.full_like(check_ids(ids, self.size), -math.log(self.size), dtype=torch.float32)
