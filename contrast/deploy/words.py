"""Word vectors of a run or of a file. V words, D dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from contrast.data.text.vectors import save_vectors
from contrast.encoders.subwords import Subwords
from contrast.errors import InputError, need
from contrast.evaluation.words import nearest_words

if TYPE_CHECKING:
    from gensim.models import KeyedVectors


class WordEmbeddings:
    """Words, the most frequent first, and their vectors, float32 [V, D]. `embeddings["king"]` is a vector [D].

    Similarity is the cosine. With `subwords`, an unknown word has the mean of the vectors of its n-grams, if it shares
    any with a known word. Any other unknown word raises an InputError.
    """

    def __init__(self, words: tuple[str, ...], vectors: Tensor, subwords: Subwords | None = None) -> None:
        self.words, self.vectors, self.subwords = words, vectors, subwords

    @cached_property
    def number(self) -> dict[str, int]:
        """The row of each word."""
        return {word: row for row, word in enumerate(self.words)}

    def __repr__(self) -> str:
        return f"WordEmbeddings({len(self):,} words, {self.vectors.shape[1]} dimensions)"

    def __len__(self) -> int:
        return len(self.words)

    def __iter__(self) -> Iterator[str]:
        return iter(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self.number

    def __getitem__(self, word: str) -> Tensor:
        if word in self.number:
            return self.vectors[self.number[word]]
        if self.subwords is not None and len(composed := self.subwords.compose([word])[1]):
            return composed[0]
        alike = "" if self.subwords is None else ", and shares no n-gram with them"
        raise InputError(f"'{word}' is none of the {len(self.words):,} words{alike}")

    def most_similar(
        self, positive: str | Sequence[str], negative: str | Sequence[str] = (), k: int = 10
    ) -> list[tuple[str, float]]:
        """The k words nearest to the sum of the vectors of `positive` less those of `negative`, and their cosines.

        Each vector has length 1 in the sum. The words themselves are no answers. The best answer comes first.
        """
        words, vectors = self.words, self.vectors
        if self.subwords is not None:
            given = [word for each in (positive, negative) for word in ([each] if isinstance(each, str) else each)]
            words, vectors = self.subwords.extend(words, vectors, given)
        return nearest_words(vectors, words, positive, k, negative)

    def similarity(self, first: str, second: str) -> float:
        """The cosine of two words."""
        return float(F.cosine_similarity(self[first].double(), self[second].double(), dim=0))

    def analogy(self, a: str, b: str, c: str, k: int = 10) -> list[tuple[str, float]]:
        """The k best answers to "a is to b as c is to ...", and their cosines with b - a + c, best first."""
        return self.most_similar([b, c], [a], k)

    def save(self, path: str | Path) -> None:
        """Writes a file that `contrast.load` and other programs read: see `contrast.data.text.vectors`.

        NAME.floret, for `spacy init vectors`, takes n-grams that are hashed as in floret.
        """
        save_vectors(path, self.words, self.vectors, None if self.subwords is None else self.subwords.tensors())

    def to_keyed_vectors(self) -> KeyedVectors:
        """The same vectors as gensim's KeyedVectors: `pip install 'contrast-learning[gensim]'`.

        With `subwords` they are FastTextKeyedVectors, which have a row for every bucket, and the same vectors for
        unknown words. Raises InputError for n-grams that are hashed as in floret, which gensim cannot hold.
        """
        if self.subwords is not None and self.subwords.hashes:
            raise InputError("gensim hashes n-grams as fastText does, and these as floret does: save('NAME.floret')")
        need("gensim", "gensim", "to_keyed_vectors")
        from gensim.models import KeyedVectors
        from gensim.models.fasttext import FastTextKeyedVectors

        width, parts = self.vectors.shape[1], self.subwords
        if parts is None:
            keyed = KeyedVectors(width)
        else:
            keyed = FastTextKeyedVectors(width, parts.minn, parts.maxn, parts.buckets)
            keyed.vectors_ngrams = np.zeros((parts.buckets, width), np.float32)
            keyed.vectors_ngrams[parts.used.numpy()] = parts.vectors.numpy()
        keyed.add_vectors(list(self.words), self.vectors.numpy())
        return keyed
