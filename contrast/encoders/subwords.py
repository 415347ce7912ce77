"""Words as the sum of their parts: a word's vector is the mean of the rows of itself and of its n-grams of letters.

fastText (Bojanowski et al. 2017, "Enriching word vectors with subword information"); floret (Boyd and Warmerdam 2022),
which hashes words and n-grams to several buckets of a small table. V words, D dimensions, m rows of all words' parts, U
different buckets of these.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contrast.encoders.ngrams import MOST_HASHES, ngram_buckets
from contrast.encoders.words import WordTable
from contrast.errors import InputError


class Subwords(NamedTuple):
    """The n-grams of known words, from which unknown words get vectors.

    minn, maxn, buckets, hashes  as in `SubwordTable`
    used                         [U] int64, the buckets of the known words' n-grams, in order
    vectors                      [U, D], theirs
    """

    minn: int
    maxn: int
    buckets: int
    used: Tensor
    vectors: Tensor
    hashes: int = 0

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Subwords":
        """Those whose `tensors()` these are. Raises InputError for others."""
        names = "subwords", "subword_buckets", "subword_vectors"
        sizes, used, vectors = (tensors.get(name, torch.empty(0)) for name in names)
        if sizes.shape not in ((3,), (4,)) or vectors.ndim != 2 or used.shape != vectors.shape[:1]:
            shapes = ", ".join(str(list(each.shape)) for each in (sizes, used, vectors))
            raise InputError(f"{', '.join(names)} have shapes {shapes}, not 3 or 4 sizes, buckets [U], vectors [U, D]")
        minn, maxn, buckets, *hashes = map(int, sizes.tolist())
        check_sizes(minn, maxn, buckets, *hashes)
        if len(used) and (used.min() < 0 or used.max() >= buckets or (used.diff() <= 0).any()):
            raise InputError(f"subword_buckets are no rising numbers from 0 to {buckets - 1}")
        return cls(minn, maxn, buckets, used.long(), vectors.float(), *hashes)

    def tensors(self) -> dict[str, Tensor]:
        """What `of` makes it from again, for a file."""
        sizes = torch.tensor([self.minn, self.maxn, self.buckets, *([self.hashes] if self.hashes else [])])
        return {"subwords": sizes, "subword_buckets": self.used.int(), "subword_vectors": self.vectors.float()}

    def compose(self, words: Sequence[str]) -> tuple[list[str], Tensor]:
        """Those of the words that share an n-gram with a known word, and their vectors.

        A vector is the mean over all n-grams of the word; those of other buckets count as 0.
        """
        words = [word for word in words if word]
        if not words or not len(self.used):
            return [], self.vectors[:0]
        of_words, number = ngram_buckets(words, self.minn, self.maxn, self.buckets, self.hashes)
        row = torch.searchsorted(self.used, of_words).clamp(max=len(self.used) - 1)
        is_used = self.used[row] == of_words
        owner = torch.repeat_interleave(number)[is_used]
        total = self.vectors.new_zeros(len(words), self.vectors.shape[1])
        total.index_add_(0, owner, self.vectors[row[is_used]])
        has = torch.zeros(len(words), dtype=torch.bool).index_fill(0, owner, True)
        kept = [word for word, shares in zip(words, has.tolist(), strict=True) if shares]
        return kept, (total / number.clamp(min=1)[:, None])[has]

    def extend(self, words: Sequence[str], vectors: Tensor, wanted: Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
        """Words and their vectors [V, D], and after them those of the wanted words that are new and can be composed."""
        known = set(words)
        new, composed = self.compose(list(dict.fromkeys(word for word in wanted if word not in known)))
        return ((*words, *new), torch.cat([vectors, composed.to(vectors)])) if new else (tuple(words), vectors)


def check_sizes(minn: int, maxn: int, buckets: int, hashes: int = 0) -> None:
    """Raises InputError for sizes that `SubwordTable` cannot have."""
    if not 1 <= minn <= maxn or buckets < 1:
        raise InputError(f"n-grams have 1 <= minn <= maxn letters and 1 bucket at least: {minn}, {maxn}, {buckets}")
    if not 0 <= hashes <= MOST_HASHES:
        raise InputError(f"an n-gram is hashed to at most {MOST_HASHES} buckets, not hashes={hashes}")


class SubwordTable(WordTable):
    """Vectors of words as means over rows: those of the word itself and of its n-grams (fastText, floret).

    words         [V], from which the n-grams are made
    minn, maxn    characters of an n-gram, with < before and > after the word
    buckets       to which n-grams are hashed; two that meet in a bucket share a row
    hashes        0, as in fastText: a word has a row of its own, and each n-gram one of a bucket. From 1 to 4, as in
                  floret: a word and its n-grams are hashed to so many buckets each, and there are no other rows

    `weight` is [V + U, D], or [U, D] with `hashes`: only buckets that a word uses have rows, so memory does not grow
    with `buckets`. Rows start in +-1 / num_features, as in fastText.
    """

    rows: Tensor  # [V + m], of each word its own row and those of its n-grams; [m] with hashes
    start: Tensor  # [V], where a word begins
    number: Tensor  # [V], how many rows it has
    used: Tensor  # [U], buckets that have rows

    def __init__(
        self,
        num_ids: int,
        words: Sequence[str],
        num_features: int = 100,
        minn: int = 3,
        maxn: int = 6,
        buckets: int = 2_000_000,
        hashes: int = 0,
    ) -> None:
        check_sizes(minn, maxn, buckets, hashes)
        super().__init__(num_ids, num_features)
        self.minn, self.maxn, self.buckets, self.hashes = minn, maxn, buckets, hashes
        self.own = 0 if hashes else num_ids  # rows of words themselves
        of_words, number = ngram_buckets(words, minn, maxn, buckets, hashes)
        used, rows = of_words.unique(return_inverse=True)
        self.weight = nn.Parameter((2 * torch.rand(self.own + len(used), num_features) - 1) / num_features)
        if not hashes:
            own = number.cumsum(0) - number + torch.arange(num_ids)  # where the rows of a word begin
            is_own = torch.zeros(num_ids + len(rows), dtype=torch.bool).index_fill(0, own, True)
            of_ngrams, rows = rows + num_ids, torch.empty(len(is_own), dtype=torch.int64)
            rows[is_own], rows[~is_own] = torch.arange(num_ids), of_ngrams
            number = number + 1
        start = number.cumsum(0) - number
        for name, value in {"rows": rows, "start": start, "number": number, "used": used}.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        different, place = ids.reshape(-1).unique(return_inverse=True)
        rows, number = self.rows_of(different)
        means = F.embedding_bag(rows, self.weight, number.cumsum(0) - number, mode="mean")
        return means[place].view(*ids.shape, -1)

    def rows_of(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of the words `ids` [u], one word after another, and how many each has, [u]."""
        number = self.number[ids]
        before = self.start[ids] - number.cumsum(0) + number
        return self.rows[torch.arange(int(number.sum()), device=ids.device) + before.repeat_interleave(number)], number

    def spread(self, ids: Tensor, gradient: Tensor, load: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of `weight` [m], their gradients [m, D] and loads [m], from those of the vectors of words `ids` [n].

        A row may be there several times; then it has the sum of its gradients and loads.

        As in fastText, each row of a word takes the whole gradient of their mean, not one n-th of it. So the vector of
        a word of n rows moves as far as that of a `WordTable`, whatever n is, at the same learning rate: by the sum of
        n steps, one n-th of each.
        """
        different, place = ids.unique(return_inverse=True)
        rows, number = self.rows_of(different)
        gradient = gradient.new_zeros(len(different), gradient.shape[1]).index_add_(0, place, gradient)
        load = load.new_zeros(len(different)).index_add_(0, place, load)
        word = torch.repeat_interleave(number)  # of each row
        return rows, gradient.index_select(0, word), load.index_select(0, word)

    def whole(self) -> Tensor:
        parts = torch.arange(len(self.number), device=self.weight.device).split(1 << 14)
        return torch.cat([self.forward(part) for part in parts])

    def row_lists(self) -> tuple[Tensor, Tensor]:
        return F.pad(self.number.cumsum(0), (1, 0)), self.rows

    def subwords(self) -> Subwords:
        """The n-grams with their vectors."""
        vectors = self.weight.detach()[self.own :].cpu()
        return Subwords(self.minn, self.maxn, self.buckets, self.used.cpu(), vectors, self.hashes)
