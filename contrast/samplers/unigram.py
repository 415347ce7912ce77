"""Unigram noise: classes as often as they were counted, flattened by a power.

N classes.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from contrast.errors import InputError
from contrast.samplers.alias import Alias, relative


class Unigram(Alias):
    """q(k) = counts[k]^power / sum of counts^power: a `Sampler`. A class that was never counted is never drawn.

    counts  [N], finite, none negative, not all 0; q of a 0 is 0 whatever the power
    power   0.75 is word2vec's (Mikolov et al. 2013, section 2.2), 0.5 fastText's, 1 the unigram distribution of NCE
            language models (Mnih & Teh 2012)

    Raises InputError for other counts, and for a power that is negative or not finite.
    """

    log_q: Tensor  # [N] float32
    size: int

    def __init__(self, counts: Tensor | np.ndarray | Sequence[float], power: float = 0.75) -> None:
        if not 0 <= power < math.inf:
            raise InputError(f"the power of a unigram distribution must be finite and not negative, got {power}")
        frequency = relative(counts, "counts")  # [N]
        counted = frequency > 0
        weights = np.where(counted, frequency**power, 0)
        super().__init__(weights)
        self.size = len(weights)
        log_weights = power * np.log(frequency, out=np.zeros_like(frequency), where=counted)
        log_q = np.where(counted, log_weights - math.log(weights.sum()), -math.inf)
        self.register_buffer("log_q", torch.from_numpy(log_q).float())

    def log_prob(self, ids: Tensor) -> Tensor:
        """log q of `ids` int64, float32 of the same shape; -inf where the class is never drawn."""
        return self.log_q[ids].float()
