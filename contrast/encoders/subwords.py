"""Words as the sum of their parts: a word's vector is the mean of its own row and those of its n-grams of letters.

fastText (Bojanowski et al. 2017, "Enriching word vectors with subword information"). V words, D dimensions, m n-grams
of all words, U different buckets of these.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contrast.encoders.words import WordTable
from contrast.errors import InputError

_AT_ONCE = 100_000  # words of which the n-grams are hashed at a time
_START, _PRIME = np.uint32(2166136261), np.uint32(16777619)  # of FNV-1a


def ngram_buckets(words: Sequence[str], minn: int, maxn: int, buckets: int) -> tuple[Tensor, Tensor]:
    """Buckets [m] of the n-grams of all words, one word after another, and how many each word has, [V]; int64.

    The n-grams of <word>, of minn to maxn characters, are hashed to a bucket each as in fastText: by FNV-1a of their
    bytes in UTF-8, which are taken for signed ones. < and > alone are none.
    """
    parts = [_hashes(words[start : start + _AT_ONCE], minn, maxn) for start in range(0, len(words), _AT_ONCE)]
    hashes, numbers = (np.concatenate(each) for each in zip(*parts, strict=True))
    return torch.from_numpy(hashes.astype(np.int64) % buckets), torch.from_numpy(numbers)


def _hashes(words: Sequence[str], minn: int, maxn: int) -> tuple[np.ndarray, np.ndarray]:
    text = "".join(f"<{word}>" for word in words)
    data = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.int8)
    begins = np.flatnonzero(data >= -64)  # [C], where the letters of all words begin: other bytes are 10xxxxxx
    size = np.diff(begins, append=len(data))  # bytes of each letter
    signed = np.pad(data.astype(np.int32).view(np.uint32), (0, 3))
    letter_bytes = [signed[begins + place] for place in range(4)]
    lengths = np.array([len(word) + 2 for word in words])
    word = np.repeat(np.arange(len(words)), lengths)  # [C], of each letter
    left = np.repeat(lengths.cumsum(), lengths) - np.arange(len(begins))  # letters from here to the end of the word
    state, found, owner = np.full(len(begins), _START), [], []
    at = np.arange(len(begins))  # where n-grams of the present length begin
    for n in range(1, maxn + 1):
        at = at[left[at] >= n]
        last = at + n - 1
        for place, byte in enumerate(letter_bytes):
            more = size[last] > place
            state[at[more]] = (state[at[more]] ^ byte[last[more]]) * _PRIME
        if n >= minn:
            chosen = at if n > 1 else at[(left[at] > 1) & (left[at] < lengths[word[at]])]
            found.append(state[chosen])
            owner.append(word[chosen])
    owners = np.concatenate(owner)
    order = owners.argsort(kind="stable")
    return np.concatenate(found)[order], np.bincount(owners, minlength=len(words))


class Subwords(NamedTuple):
    """The n-grams of known words, from which unknown words get vectors.

    minn, maxn, buckets  as in `SubwordTable`
    used                 [U] int64, the buckets of the known words' n-grams, in order
    vectors              [U, D], theirs
    """

    minn: int
    maxn: int
    buckets: int
    used: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Subwords":
        """Those whose `tensors()` these are. Raises InputError for others."""
        names = "subwords", "subword_buckets", "subword_vectors"
        sizes, used, vectors = (tensors.get(name, torch.empty(0)) for name in names)
        if len(sizes) != 3 or vectors.ndim != 2 or used.shape != vectors.shape[:1] or not 1 <= sizes[0] <= sizes[1]:
            shapes = ", ".join(str(list(each.shape)) for each in (sizes, used, vectors))
            raise InputError(f"{', '.join(names)} have shapes {shapes}, not 3 sizes, buckets [U] and vectors [U, D]")
        minn, maxn, buckets = sizes.tolist()
        return cls(minn, maxn, buckets, used.long(), vectors.float())

    def tensors(self) -> dict[str, Tensor]:
        """What `of` makes it from again, for a file."""
        sizes = torch.tensor([self.minn, self.maxn, self.buckets])
        return {"subwords": sizes, "subword_buckets": self.used.int(), "subword_vectors": self.vectors.float()}

    def compose(self, words: Sequence[str]) -> tuple[list[str], Tensor]:
        """Those of the words that share an n-gram with a known word, and their vectors.

        A vector is the mean over all n-grams of the word; those of other buckets count as 0.
        """
        words = [word for word in words if word]
        if not words:
            return [], self.vectors[:0]
        of_words, number = ngram_buckets(words, self.minn, self.maxn, self.buckets)
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


class SubwordTable(WordTable):
    """Vectors of words as means over rows: one of the word itself, and one of each of its n-grams (fastText).

    words         [V], from which the n-grams are made
    minn, maxn    characters of an n-gram, with < before and > after the word
    buckets       to which n-grams are hashed; two that meet in a bucket share a row

    `weight` is [V + U, D]: only buckets that a word uses have rows, so memory does not grow with `buckets`. Rows start
    in +-1 / num_features, as in fastText.
    """

    rows: Tensor  # [V + m], of each word its own row and those of its n-grams
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
    ) -> None:
        if not 1 <= minn <= maxn or buckets < 1:
            raise InputError(f"n-grams have 1 <= minn <= maxn letters and 1 bucket at least: {minn}, {maxn}, {buckets}")
        super().__init__(num_ids, num_features)
        self.minn, self.maxn, self.buckets = minn, maxn, buckets
        of_words, number = ngram_buckets(words, minn, maxn, buckets)
        used, row = of_words.unique(return_inverse=True)
        self.weight = nn.Parameter((2 * torch.rand(num_ids + len(used), num_features) - 1) / num_features)
        start = number.cumsum(0) - number + torch.arange(num_ids)
        rows = torch.empty(num_ids + len(row), dtype=torch.int64)
        own = torch.zeros(len(rows), dtype=torch.bool).index_fill(0, start, True)
        rows[own], rows[~own] = torch.arange(num_ids), row + num_ids
        for name, value in {"rows": rows, "start": start, "number": number + 1, "used": used}.items():
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
        vectors = self.weight.detach()[len(self.number) :].cpu()
        return Subwords(self.minn, self.maxn, self.buckets, self.used.cpu(), vectors)
