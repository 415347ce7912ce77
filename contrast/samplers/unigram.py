"""The unigram distribution: classes in proportion to a power of their counts.

N classes.
"""

import math

import numpy as np
import torch
from torch import Tensor

from contrast.errors import InputError
from contrast.samplers.alias import Alias
from contrast.samplers.contract import Values, check_ids, check_weights


class Unigram(Alias):
    """q(k) = counts[k]^power / sum of counts^power: a `Sampler`. A class with count 0 is never drawn.

    counts  [N], finite, none negative, not all 0; q of a 0 is 0 whatever the power
    power   0.75 is word2vec's (Mikolov et al. 2013, section 2.2), 0.5 fastText's, 1 the unigram distribution of NCE
            language models (Mnih & Teh 2012)

    Raises InputError for other counts, and for a power that is negative or not finite.
    """

    log_q: Tensor  # [N] float32
    size: int

    def __init__(self, counts: Values, power: float = 0.75) -> None:
        if not 0 <= power < math.inf:
            raise InputError(f"the power of a unigram distribution must be finite and not negative, got {power}")
        frequency = check_weights(counts, "counts")  # [N]
        frequency = frequency / frequency.max()  # so that no sum overflows
        counted = frequency > 0
        weights = np.where(counted, frequency**power, 0)
        super().__init__(weights)
        self.size = len(weights)
        log_weights = power * np.log(frequency, out=np.zeros_like(frequency), where=counted)
        log_q = np.where(counted, log_weights - math.log(weights.sum()), -math.inf)
        self.register_buffer("log_q", torch.from_numpy(log_q).float())

    def log_prob(self, ids: Tensor) -> Tensor:
        """As `Sampler.log_prob`; -inf for a class that is never drawn."""
        return self.log_q[check_ids(ids, self.size)].float()
