"""Words that stand together more often than chance has it become one word: new_york (Mikolov et al. 2013, section 4).

V distinct words, n ids of a part of a text.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, NamedTuple

import numpy as np

from contrast.errors import InputError

MARK = "_"  # stands between the words of a phrase
_AT_ONCE = 1 << 24  # pairs that are sorted at a time
_PART = 1 << 22  # ids, in which the parts of a text are looked for the end of a line
log = logging.getLogger(__name__)

Parts = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]  # ids [n], -1 between lines; which are held out, [n] bool


class Rules(NamedTuple):
    """Which pairs of words are phrases: those whose score is greater than the threshold.

    passes     how often pairs are joined; the second time a phrase may be part of a pair
    min_count  d, what is taken from the count of a pair, so that rare words do not make phrases
    threshold  a higher one gives fewer phrases

    The score of a pair is (count(a b) - d) N / (count(a) count(b)), where N is the number of distinct words and of
    distinct pairs, as in gensim's `Phrases`; word2phrase.c has the number of words of the text in place of N.
    """

    passes: int
    min_count: int
    threshold: float

    def check(self) -> None:
        """Raises InputError for values out of range."""
        if self.passes < 0 or self.min_count < 1 or not self.threshold > 0:
            raise InputError(
                f"phrases ({self.passes}) must be 0 or more passes, phrase_min_count ({self.min_count}) 1 or more and "
                f"phrase_threshold ({self.threshold:g}) more than 0"
            )


def joined(parts: Parts, words: Sequence[str], rules: Rules, file: IO[bytes]) -> tuple[list[str], np.ndarray]:
    """Writes a text with its phrases joined, in one pass, to `file` as int32 ids; returns its words and their counts.

    A phrase has the words of one line. Of pairs that overlap the first is joined. Counts [V], int64, and the choice of
    the phrases leave out what is held out; its phrases are joined as well. A mark of punctuation is part of no phrase.
    """
    codes = phrases(parts, words, rules)
    first, second = np.divmod(codes, len(words))
    numbers = {word: i for i, word in enumerate(words) if MARK in word}  # a phrase may be a word already
    found = [f"{words[a]}{MARK}{words[b]}" for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    all_words = list(words)
    for name in found:
        if numbers.setdefault(name, len(all_words)) == len(all_words):
            all_words.append(name)
    ids_of = np.array([numbers[name] for name in found], np.int32)
    begins, ends = np.zeros((2, len(words) + 1), bool)  # the last one is that of a border, -1
    begins[first] = ends[second] = True
    counts = np.zeros(len(all_words), np.int64)
    for ids, held in lines(parts):
        maybe = np.flatnonzero(begins[ids[:-1]] & ends[ids[1:]])
        code = ids[maybe].astype(np.int64) * len(words) + ids[maybe + 1]
        place = np.searchsorted(codes, code)
        is_phrase = codes[np.minimum(place, len(codes) - 1)] == code if len(codes) else np.zeros(0, bool)
        at, place = maybe[is_phrase], place[is_phrase]
        run = np.flatnonzero(np.diff(at, prepend=-2) != 1)  # where pairs begin that overlap with no pair before
        number = np.arange(len(at)) - np.repeat(run, np.diff(run, append=len(at)))
        at, place = at[number % 2 == 0], place[number % 2 == 0]
        ids = ids.copy()
        ids[at] = ids_of[place]
        kept = np.ones(len(ids), bool)
        kept[at + 1] = False
        file.write(ids[kept].tobytes())
        counts += np.bincount(ids[kept & (ids >= 0) & ~held], minlength=len(counts))
    log.info("%s phrases%s", f"{len(found):,}", f", such as {', '.join(found[:3])}" if found else "")
    return all_words, counts


def phrases(parts: Parts, words: Sequence[str], rules: Rules) -> np.ndarray:
    """The phrases of a text, sorted: the number of the first word times V, plus that of the second, int64."""
    counts, total = np.zeros(len(words), np.int64), 0
    for ids, held in parts():
        counts += np.bincount(ids[(ids >= 0) & ~held], minlength=len(words))
        total += len(ids)
    is_word = np.array([re.search(r"\w", word) is not None for word in words] + [False])
    shares = -(-total // _AT_ONCE)  # of the first words, of which one at a time is counted
    distinct, codes, numbers = int((counts > 0).sum()), [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for share in range(shares):
        pairs = np.concatenate([_pairs(*part, is_word, share, shares) for part in lines(parts)])
        pairs.sort()
        start = np.flatnonzero(np.diff(pairs, prepend=-1))
        number = np.diff(start, append=len(pairs))
        distinct += len(start)
        often = number > rules.min_count
        codes.append(pairs[start[often]])
        numbers.append(number[often])
    code, number = np.concatenate(codes), np.concatenate(numbers)
    first, second = np.divmod(code, len(words))
    score = (number - rules.min_count) / (counts[first] * counts[second]) * distinct
    return np.sort(code[score > rules.threshold])


def _pairs(ids: np.ndarray, held: np.ndarray, is_word: np.ndarray, share: int, shares: int) -> np.ndarray:
    """The pairs of a part, as `phrases`, whose first word is of this share."""
    first, second = ids[:-1], ids[1:]
    wanted = is_word[first] & is_word[second] & ~held[:-1]
    if shares > 1:
        wanted &= first % shares == share
    return first[wanted].astype(np.int64) * (len(is_word) - 1) + second[wanted]


def lines(parts: Parts) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The parts of a text cut where lines end; within one only if it has more than `_PART` words."""
    rest: tuple[np.ndarray, np.ndarray] | None = None
    for part in parts():
        ids, held = part if rest is None else (np.concatenate(pair) for pair in zip(rest, part, strict=True))
        (borders,) = np.nonzero(ids < 0)
        end = borders[-1] + 1 if len(borders) else 0
        end = len(ids) if len(ids) - end > _PART else end
        if end:
            yield ids[:end], held[:end]
        rest = ids[end:], held[end:]
    if rest is not None and len(rest[0]):
        yield rest
