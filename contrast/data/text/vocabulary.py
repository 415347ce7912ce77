"""The words of a vocabulary among all words of a text, as one array of ids.

V words, T places of the array.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from contrast.data.store import from_texts, to_texts
from contrast.data.text.encode import FILE, Encoder, write_ids
from contrast.data.text.phrases import Rules, joined
from contrast.data.text.ranks import added_over_ranks, of_all_ranks
from contrast.data.text.split import Splitter
from contrast.data.text.text_files import Block
from contrast.data.text.tokenizer import frequent_words
from contrast.errors import InputError

BORDER = -1  # closes a line among its ids
UNKNOWN = "<unk>"
_DROPPED = -2


class Limits(NamedTuple):
    """What becomes of the words of a text: arguments of `corpus`."""

    min_count: int
    max_words: int | None
    unknown: str
    unit: str
    held_out: float
    seed: int
    words: tuple[str, ...] | None


def with_phrases(text: dict[str, Tensor], limits: Limits, rules: Rules, folder: Path) -> dict[str, Tensor]:
    """A text in whose units pairs of words are joined, each unit a line: an entry of the cache, as `read` gives it."""
    for _ in range(rules.passes):
        raw = text["ids"].numpy()
        with TemporaryFile(dir=folder) as file:
            words, counts = joined(partial(_units, raw, limits), to_texts(text["words"]), rules, file)
            text = {"ids": mapped(file), "words": from_texts(words), "counts": torch.from_numpy(counts)}
        limits = limits._replace(unit="line")
    return text


def chosen(
    text: dict[str, Tensor], limits: Limits, folder: Path, files: Sequence[Path], over_ranks: bool = False
) -> dict[str, Tensor]:
    """The words of a vocabulary among all words of a text: an entry of the cache, of which `Corpus` is made.

    Ids are mapped from temporary files in `folder`, because they may not fit in memory.
    """
    words, raw = to_texts(text["words"]), text["ids"].numpy()
    counts = text["counts"].numpy()
    if limits.held_out:
        counts = np.zeros(len(words), np.int64)
        for ids, held in _units(raw, limits):
            counts += np.bincount(ids[(ids >= 0) & ~held], minlength=len(words))
    total = sum(of_all_ranks(int(counts.sum()))) if over_ranks else int(counts.sum())
    if not total:
        beside = " beside the lines held out" if len(words) else ""
        raise InputError(f"{files[0]}{' and the other files' * (len(files) > 1)}: no words{beside}")
    no_word = ("", UNKNOWN) if limits.unknown == "keep" else ("",)  # an <unk> of the text itself is of the rest

    def numbers(least: int) -> dict[str, int]:
        """The index of each word that occurs at least so often."""
        return {words[i]: i for i in np.flatnonzero(counts >= least).tolist() if words[i] not in no_word}

    # Most words are rare, and a dictionary of all of them takes long. It is needed only for a given vocabulary, for the
    # counts of other ranks, and for the error about a vocabulary that would be empty.
    needs_all = limits.words is not None or over_ranks
    number = numbers(1 if needs_all else limits.min_count) or numbers(1)
    counted = dict(zip(number, counts[list(number.values())].tolist(), strict=True))
    if over_ranks:
        counted = added_over_ranks(counted, limits.min_count)
    if limits.words is None:
        kept = frequent_words(counted, limits.min_count, limits.max_words)
    else:
        kept = {word: counted.get(word, 0) for word in limits.words}
    if limits.unknown == "keep":
        kept |= {UNKNOWN: total - sum(kept.values())}
        kept = frequent_words(kept, 0, None) if limits.words is None else kept
    vocabulary = {word: i for i, word in enumerate(kept)}
    other = vocabulary.get(UNKNOWN, _DROPPED) if limits.unknown == "keep" else _DROPPED
    places = np.full(len(words) + 1, other, np.int32)  # by id; the last one is that of a border, -1
    places[-1] = BORDER
    known = [word for word in vocabulary if word in number]
    places[[number[word] for word in known]] = [vocabulary[word] for word in known]
    with TemporaryFile(dir=folder) as kept_file, TemporaryFile(dir=folder) as held_out_file:
        kept_writer, held_out = _IdWriter(kept_file), _IdWriter(held_out_file)
        for ids, held in _units(raw, limits):
            of_vocabulary = places[ids]
            is_known = of_vocabulary != _DROPPED
            kept_writer.write(of_vocabulary[is_known & ~held])
            if limits.held_out:
                held_out.write(of_vocabulary[is_known & held])
        if limits.held_out and not held_out.lines:
            lines = kept_writer.lines
            raise InputError(f"held_out={limits.held_out} beside {lines:,} lines holds out no word of the vocabulary")
        return {
            "ids": kept_writer.ids(),
            "held_out": held_out.ids(),
            "words": from_texts(list(kept)),
            "counts": torch.tensor(list(kept.values()), dtype=torch.int64),
            "numbers": torch.tensor([total, kept_writer.lines, max(other, -1)]),
        }


def ids_of(text: str, split: Splitter, vocabulary: Mapping[str, int], unknown: int | None, unit: str) -> Tensor:
    """The ids of a text that is in memory, [n] int64, as those of a file; its last line has no end unless it is given.

    vocabulary  the id of each word; unknown: that of other words; None: they are left out
    """
    with BytesIO() as file:
        words = write_ids([Encoder(split)(Block(text.encode(errors="replace"), False))], file, None).words
        raw = np.frombuffer(file.getvalue(), np.int32)
    other = _DROPPED if unknown is None else unknown
    places = np.array([*(vocabulary.get(word, other) for word in words), BORDER])
    limits = Limits(1, None, "", unit, 0.0, 0, None)
    ids = np.concatenate([[BORDER], *(places[part] for part, _ in _units(raw, limits))])
    ids = ids[ids != _DROPPED]
    return torch.from_numpy(ids[1:][(ids[1:] != BORDER) | (ids[:-1] != BORDER)])  # no line is empty


def _units(raw: np.ndarray, limits: Limits, size: int = 1 << 22) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All ids of a text, part by part, with one BORDER where a unit ends; and which are held out, [n] bool.

    Of the units number i, from 0, is held out if a whole number lies in (i h + p, (i + 1) h + p], with h = held_out and
    p in [0, 1) drawn by the seed: every n-th for h = 1 / n.
    """
    phase, number, start = random.Random(limits.seed).random(), 0, 0
    while start < len(raw):
        end = min(start + size, len(raw))
        while end < len(raw) and raw[end] < 0:  # line feeds that follow each other stay together
            end += 1
        ids = raw[start:end]
        start = end
        is_word = ids >= 0
        first = int(np.argmax(is_word))
        if not is_word[first]:
            continue
        ids, is_word = ids[first:], is_word[first:]  # a part begins with a word
        kept = is_word.copy()
        kept[1:] |= is_word[:-1]  # of the borders in a row, the first
        ends = np.flatnonzero(kept & ~is_word)
        if limits.unit != "line" and len(ends):
            closes = np.minimum.reduceat(ids, ends) == FILE  # [ends], among the borders there
            if limits.unit == "paragraph":
                closes |= np.add.reduceat(~is_word, ends, dtype=np.int64) > 1
            kept[ends] = closes
        ids = np.maximum(ids[kept], BORDER)  # LINE and FILE are not above it
        held = np.zeros(len(ids), bool)
        if limits.held_out:
            last = ids == BORDER
            of_unit = (number + np.cumsum(last) - last).astype(np.float64)  # [n], the number of the unit
            number += int(last.sum())
            held = np.floor((of_unit + 1) * limits.held_out + phase) > np.floor(of_unit * limits.held_out + phase)
        yield ids, held


class _IdWriter:
    """Writes ids block after block to a file; a border that no id precedes is left out, so no line is empty."""

    def __init__(self, file: IO[bytes]) -> None:
        self.lines = 0  # closed so far
        self._file, self._closed = file, True

    def write(self, ids: np.ndarray) -> None:
        """ids [n] int32, with BORDER where a line ends."""
        if len(ids) == 0:
            return
        border = ids == BORDER
        before = np.concatenate([[self._closed], border[:-1]])
        self._closed = bool(border[-1])
        ids = ids[~(border & before)]
        self.lines += int((ids == BORDER).sum())
        self._file.write(ids.data)

    def ids(self) -> Tensor:
        """All that was written, [n] int32, mapped from the file."""
        return mapped(self._file)


def mapped(file: IO[bytes]) -> Tensor:
    """The numbers in a file, [n] int32."""
    file.flush()
    if not file.tell():
        return torch.empty(0, dtype=torch.int32)
    return torch.from_numpy(np.memmap(file, np.int32))
