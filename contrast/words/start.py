"""What word vectors start with: settings that fit them and the text, and vectors of another run or of a file."""

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from contrast.encoders import SubwordTable, WordTable
from contrast.errors import InputError
from contrast.evaluation.encoder import word_vectors
from contrast.heads import AdaptiveSoftmax
from contrast.heads.head import Head
from contrast.negatives import Table, Tree
from contrast.words.blocks import keep_probability, kept_share

log = logging.getLogger(__name__)
FEW = 0.2  # a share of the words that subsampling should not keep less than: English keeps half under 1e-4
MAX_WORKERS = 256
NO_ADAPTIVE = (
    "AdaptiveSoftmax has its own classes, and word vectors are compared with a Table or a Tree: "
    "output=hierarchical_softmax, output=negative_sampling"
)
MANY_WORDS = 60e6  # of a run for which word2vec's learning rate is enough


def usual_rate(method: str, words: float) -> float:
    """The learning rate of the sum over pairs that a run begins with if none is given, for so many words to train on.

    It is word2vec's 0.025 for 60 million words and more, counted in every epoch. A vector of a run of fewer words has
    fewer steps to get anywhere, so the steps are longer: by sqrt(60 million / words), up to twice as long. This is for
    the compiled loop; where the gradients of a whole update are summed, longer steps can overshoot, and the rate is
    that of 60 million words. In CBOW all are four times as long, because each vector of a context gets only its share
    of the gradient of their mean.
    """
    rate = 0.025 * min(2.0, max(1.0, math.sqrt(MANY_WORDS / max(1.0, words))))
    return rate if method == "skipgram" else 4 * rate


def usual_subsample(counts: Tensor) -> float:
    """The threshold of subsampling if none is given: word2vec's 1e-4, or 0 where that would keep less than `FEW`."""
    return 1e-4 if kept_share(counts, keep_probability(counts, 1e-4)) >= FEW else 0.0


def check_parts(encoder: nn.Module, negatives: Table | Tree, head: Head, counts: Tensor) -> None:
    """InputError for parts of word vectors that do not fit each other."""
    if not isinstance(encoder, WordTable):
        raise InputError(f"word vectors are the rows of a WordTable, not a {type(encoder).__name__}: encoder=words")
    if isinstance(head, AdaptiveSoftmax):
        raise InputError(NO_ADAPTIVE)
    if len(counts) != len(encoder.row_lists()[0]) - 1:
        raise InputError(f"counts of {len(counts)} words do not fit {len(encoder.row_lists()[0]) - 1} vectors")
    if isinstance(encoder, SubwordTable) and not (head.has_slopes() and negatives.has_output()):
        raise InputError(
            f"n-grams are trained in closed form, and {type(head).__name__} with these options goes pair by pair "
            "through autograd: output=negative_sampling, output=hierarchical_softmax"
        )


def check_options(method: str, workers: int, lr: float, lr_end: float, max_pairs_per_row: float | None) -> None:
    """InputError for values out of range."""
    if workers > MAX_WORKERS:
        raise InputError(f"at most {MAX_WORKERS} workers share the tables, got {workers}")
    if method not in ("skipgram", "cbow"):
        raise InputError(f"the method is skipgram or cbow, not {method!r}")
    if not lr > 0 or not 0 <= lr_end <= lr:
        raise InputError(f"the learning rate falls from lr > 0 to lr_end in 0..lr, got {lr} and {lr_end}")
    if max_pairs_per_row is not None and not max_pairs_per_row > 0:
        raise InputError(f"max_pairs_per_row must be more than 0, or null for no limit, got {max_pairs_per_row}")


def start_from(
    encoder: WordTable, negatives: Table | Tree, vectors: str | None, output_vectors: str | None, words: Sequence[str]
) -> None:
    """Copies the input and the output vectors of runs or files, as far as they are given, to the rows of `words`."""
    if output_vectors is not None and not isinstance(negatives, Table):
        raise InputError("output_vectors are those of words, and the output layer of a Tree has none")
    if isinstance(encoder, SubwordTable) and vectors is not None:
        raise InputError("model.vectors has no vectors of n-grams: encoder=words starts from them")
    for table, source in ((encoder.weight, vectors), (negatives.vectors, output_vectors)):
        if source is not None:
            copy_rows(source, words, table)


@torch.no_grad()
def copy_rows(source: str, words: Sequence[str], table: Tensor) -> None:
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
