"""What word vectors start with: settings that suit the text, and vectors of another run or of a file."""

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from contrast.errors import InputError
from contrast.evaluation.encoder import word_vectors
from contrast.words.blocks import keep_probability, kept_share

log = logging.getLogger(__name__)
FEW = 0.2  # a share of the words that subsampling should not keep less than: English keeps half under 1e-4
MANY_WORDS = 50e6  # of a run for which word2vec's learning rate is enough


def usual_rate(method: str, words: float) -> float:
    """The learning rate of the sum over pairs that a run begins with if none is given, for so many words to train on.

    It is word2vec's 0.025 for 50 million words and more, counted in every epoch. A vector of a run of fewer words has
    fewer steps to get anywhere, so the steps are longer: by sqrt(50 million / words), up to twice as long. This is for
    the compiled loop; where the gradients of a whole update are summed, longer steps can overshoot, and the rate is
    that of 50 million words. In CBOW all are four times as long, because each vector of a context gets only its share
    of the gradient of their mean.
    """
    rate = 0.025 * min(2.0, max(1.0, math.sqrt(MANY_WORDS / max(1.0, words))))
    return rate if method == "skipgram" else 4 * rate


def usual_subsample(counts: Tensor) -> float:
    """The threshold of subsampling if none is given: word2vec's 1e-4, or 0 where that would keep less than `FEW`."""
    return 1e-4 if kept_share(counts, keep_probability(counts, 1e-4)) >= FEW else 0.0


@torch.no_grad()
def start_from(source: str, words: Sequence[str], table: Tensor) -> None:
    """Copies the vectors of a run or a file to the rows of a table [V, D] whose words it has."""
    known, vectors = word_vectors(source)
    if vectors.shape[1] != table.shape[1]:
        raise InputError(f"{source} has vectors of {vectors.shape[1]} numbers: encoder.num_features={vectors.shape[1]}")
    row = {word: i for i, word in enumerate(known)}
    rows = torch.tensor([row.get(word, -1) for word in words])
    if not (rows >= 0).any():
        raise InputError(f"none of the {len(words):,} words is among those of {source}")
    table[rows >= 0] = vectors[rows[rows >= 0]].to(table)
    log.info("%s of %s words start from %s", f"{int((rows >= 0).sum()):,}", f"{len(words):,}", source)
