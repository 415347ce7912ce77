"""The n-grams of letters of words, hashed to buckets as fastText and floret do it.

V words, C letters of all words, m n-grams of all words.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_AT_ONCE = 100_000  # words of which the n-grams are hashed at a time
_START, _PRIME = np.uint32(2166136261), np.uint32(16777619)  # of FNV-1a; floret starts its hash from _START, too
MOST_HASHES = 4  # numbers that MurmurHash3 gives


def ngram_buckets(words: Sequence[str], minn: int, maxn: int, buckets: int, hashes: int = 0) -> tuple[Tensor, Tensor]:
    """Buckets [m] of the n-grams of all words, V >= 1, word by word, and how many each word has, [V]; int64.

    The n-grams of <word>, of minn to maxn characters, are hashed to a bucket each as in fastText: by FNV-1a of their
    bytes in UTF-8, which are taken for signed ones. < and > alone are none.

    hashes  0, or from 1 to 4: each n-gram, and <word> itself, is hashed to so many buckets by MurmurHash3, as in floret
    """
    parts = []
    for start in range(0, len(words), _AT_ONCE):
        letters = Letters.of(words[start : start + _AT_ONCE])
        found, owner = _murmur(letters, minn, maxn, hashes) if hashes else _fnv(letters, minn, maxn)
        parts.append((found[owner.argsort(kind="stable")], np.bincount(owner, minlength=len(letters.number))))
    found, number = (np.concatenate(each) for each in zip(*parts, strict=True))
    return torch.from_numpy(found.astype(np.int64) % buckets), torch.from_numpy(number)


class Letters(NamedTuple):
    """The letters of all words, with < before and > after each word.

    data    the bytes of the text, uint8
    begin   [C], where a letter begins
    size    [C], how many bytes it has
    word    [C], whose letter it is
    left    [C], letters from here to the end of the word
    number  [V], letters of each word
    """

    data: np.ndarray
    begin: np.ndarray
    size: np.ndarray
    word: np.ndarray
    left: np.ndarray
    number: np.ndarray

    @classmethod
    def of(cls, words: Sequence[str]) -> "Letters":
        data = np.frombuffer("".join(f"<{word}>" for word in words).encode("utf-8", "surrogatepass"), np.uint8)
        begin = np.flatnonzero(data & 0xC0 != 0x80)  # other bytes of a letter are 10xxxxxx
        number = np.array([len(word) + 2 for word in words])
        left = np.repeat(number.cumsum(), number) - np.arange(len(begin))
        word = np.repeat(np.arange(len(words)), number)
        return cls(data, begin, np.diff(begin, append=len(data)), word, left, number)

    @property
    def longest(self) -> int:
        """Letters of the longest word: no n-gram has more."""
        return int(self.number.max())

    def starts(self, n: int, among: np.ndarray | None = None) -> np.ndarray:
        """The letters with which n-grams of so many letters begin."""
        at = np.arange(len(self.begin)) if among is None else among
        return at[self.left[at] >= n]

    def inside(self, at: np.ndarray) -> np.ndarray:
        """Those of the letters that are neither < nor >."""
        return at[(self.left[at] > 1) & (self.left[at] < self.number[self.word[at]])]


def _fnv(letters: Letters, minn: int, maxn: int) -> tuple[np.ndarray, np.ndarray]:
    """The hash of each n-gram and its word, [m]; the n-grams of n + 1 letters go on from those of n."""
    signed = np.pad(letters.data.view(np.int8).astype(np.int32).view(np.uint32), (0, 3))
    letter_bytes = [signed[letters.begin + place] for place in range(4)]
    state, found, owner = np.full(len(letters.begin), _START), [], []
    at = letters.starts(1)
    for n in range(1, min(maxn, letters.longest) + 1):
        at = letters.starts(n, at)
        last = at + n - 1
        for place, byte in enumerate(letter_bytes):
            more = letters.size[last] > place
            state[at[more]] = (state[at[more]] ^ byte[last[more]]) * _PRIME
        if n >= minn:
            chosen = letters.inside(at) if n == 1 else at
            found.append(state[chosen])
            owner.append(letters.word[chosen])
    return np.concatenate([state[:0], *found]), np.concatenate([letters.word[:0], *owner])


def _murmur(letters: Letters, minn: int, maxn: int, hashes: int) -> tuple[np.ndarray, np.ndarray]:
    """As `_fnv`, with `hashes` hashes of each n-gram and of each whole word."""
    first = letters.number.cumsum() - letters.number
    begins, lasts = [first], [first + letters.number - 1]
    for n in range(minn, min(maxn, letters.longest) + 1):
        at = letters.starts(n)
        begins.append(letters.inside(at) if n == 1 else at)
        lasts.append(begins[-1] + n - 1)
    begin, last = np.concatenate(begins), np.concatenate(lasts)
    start, length = letters.begin[begin], letters.begin[last] + letters.size[last] - letters.begin[begin]
    found = np.empty((len(begin), hashes), np.uint32)
    for size in np.unique(length):
        rows = np.flatnonzero(length == size)
        found[rows] = murmur3(letters.data[start[rows, None] + np.arange(size)])[:, :hashes]
    return found.reshape(-1), np.repeat(letters.word[begin], hashes)


def murmur3(texts: np.ndarray) -> np.ndarray:
    """MurmurHash3_x64_128 (Appleby 2011) of n texts of L bytes each, uint8 [n, L], as four numbers: uint32 [n, 4]."""
    count, length = texts.shape
    padded = np.zeros((count, (length + 16) // 16 * 16), np.uint8)
    padded[:, :length] = texts
    blocks = padded.view("<u8").reshape(count, -1, 2)  # the last one is not full
    c1, c2 = np.uint64(0x87C37B91114253D5), np.uint64(0x4CF5AD432745937F)

    def mixed(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _rotated(block[:, 0] * c1, 31) * c2, _rotated(block[:, 1] * c2, 33) * c1

    five, added = np.uint64(5), (np.uint64(0x52DCE729), np.uint64(0x38495AB5))
    h1 = h2 = np.full(count, _START, np.uint64)
    for place in range(length // 16):
        k1, k2 = mixed(blocks[:, place])
        h1 = (_rotated(h1 ^ k1, 27) + h2) * five + added[0]
        h2 = (_rotated(h2 ^ k2, 31) + h1) * five + added[1]
    k1, k2 = mixed(blocks[:, -1])
    h1, h2 = h1 ^ k1 ^ np.uint64(length), h2 ^ k2 ^ np.uint64(length)
    h1 = h1 + h2
    h1, h2 = _avalanche(h1), _avalanche(h2 + h1)
    h1 = h1 + h2
    return np.stack([h1, h2 + h1], axis=1).astype("<u8").view("<u4")


def _rotated(x: np.ndarray, bits: int) -> np.ndarray:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


def _avalanche(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))
