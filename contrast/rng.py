"""Random numbers as a function of whole numbers: no state to save for a resume, and all devices and ranks agree."""

import numpy as np
import torch


def generator(*of: int) -> torch.Generator:
    """A generator on the CPU that is a function of numbers >= 0, such as (seed, number of the batch, stream)."""
    # hashed to 32 bits: torch's generator on the CPU reads only the low 32 bits of a seed
    (mixed,) = np.random.SeedSequence(of).generate_state(1, np.uint32)
    return torch.Generator().manual_seed(int(mixed))
