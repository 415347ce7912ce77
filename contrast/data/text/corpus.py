"""Text as one array of word ids, for word embeddings and language models: counted, encoded and kept on disk.

V words, T places of the array.
"""

import math
import os
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from contrast.data.store import cache_folder, cached, digest, from_texts, to_texts
from contrast.data.text.text_files import Text, blocks, content, text_files
from contrast.data.text.tokenizer import HFTokenizer, check_vocabulary, frequent_words, tokens
from contrast.errors import InputError

BORDER = -1  # closes a line among its ids
UNKNOWN = "<unk>"
MAX_COUNTED_WORDS = 5_000_000  # distinct words counted at once, some 500 MB
_FORMAT = 2  # part of every key: to change when the same files are to give other ids
_END = "\n"  # stands for the end of a line among its words; no word holds it
_DROPPED = -2


@dataclass(frozen=True, eq=False)
class Corpus:
    """Encoded text. The tensors of ids are mapped from files: they take no memory until they are read.

    ids          [T] int32: the words of a line by their ids, then BORDER (-1), then the next line. No line is empty.
                 Two positions are in one line if (ids == BORDER).cumsum(0) is the same at both
    words        [V] by falling count, equal counts in alphabetical order; the id of a word is its index
    counts       [V] int64, of the words in the lines of `ids`
    total_words  words that were read for `ids`, including those that were dropped: "words per second" counts these
    lines        number of lines in `ids`
    unknown      the id of <unk>; None if other words were dropped
    held_out     int32, the lines that are held out and not in `ids`, in the same form; None: there are none
    """

    name: str
    ids: Tensor
    words: tuple[str, ...]
    counts: Tensor
    total_words: int
    lines: int
    unknown: int | None = None
    held_out: Tensor | None = None

    @cached_property
    def number(self) -> dict[str, int]:
        """The id of each word."""
        return {word: i for i, word in enumerate(self.words)}


class _Lines(NamedTuple):
    """How files become lines of words, some of them held out."""

    files: list[Path]
    split: Callable[[str], list[str]]
    held_out: float
    seed: int

    def parts(self, desc: str) -> Iterator[tuple[list[tuple[list[str], bool]], int]]:
        """For every block of text its lines or parts of lines, as (words, held out?), and how many are not UTF-8.

        _END closes a line that has words. Of these lines number i, from 0, is held out if a whole number lies in
        (i h + p, (i + 1) h + p], with h = held_out and p in [0, 1) drawn by the seed: every n-th for h = 1 / n.
        """
        phase, number, begun = random.Random(self.seed).random(), -1, False
        for block in blocks(self.files, desc):
            parts = []
            for number_in_block, text in enumerate(block.texts):
                words = self.split(text)
                if words and not begun:
                    number, begun = number + 1, True
                held = math.floor((number + 1) * self.held_out + phase) > math.floor(number * self.held_out + phase)
                if begun and not (block.open and number_in_block == len(block.texts) - 1):
                    words.append(_END)
                    begun = False
                if words:
                    parts.append((words, held))
            yield parts, block.broken


def corpus(
    path: Text | Sequence[Text],
    min_count: int = 5,
    max_words: int | None = None,
    unknown: str = "drop",
    tokenizer: str | None = None,
    held_out: float = 0.0,
    seed: int = 0,
    cache: str | Path | None = None,
    name: str | None = None,
) -> Corpus:
    """The text at `path`, an article or a sentence a line, as ids of words. Lines are never joined.

    path       a file, plain or .xz, .gz, .bz2; a folder (every file below it); a glob; or a list of these
    min_count  words that occur less often are not in the vocabulary
    max_words  the most frequent that are in it; None: all
    unknown    "drop" leaves all other words out, so that their neighbours become neighbours (Mikolov et al. 2013,
               word2vec); "keep" makes them one more word, <unk>, with the count of them all
    tokenizer  None: words and marks in small letters (`tokenizer.tokens`); "spaces": text that is tokenized already is
               split at spaces only; or a tokenizer of transformers, by name or folder
    held_out   share of the lines that go to `Corpus.held_out`, at equal distances from an offset that `seed` draws;
               they do not count for the vocabulary
    cache      folder of encoded text, by default $CONTRAST_CACHE or ~/.cache/contrast; files are known by content

    Text is read twice, block by block: to count, where memory grows with the number of distinct words only, and to
    encode. When these exceed MAX_COUNTED_WORDS, those seen once so far are forgotten, the next time those seen twice,
    and so on (word2vec's ReduceVocab); a warning says so. Wrong UTF-8 is read as U+FFFD; a warning counts the lines.

    Raises InputError for a path that does not exist or cannot be read, text without words, a vocabulary without words,
    a held-out part without lines, a cache that cannot be written, and values out of range.
    """
    check_vocabulary(min_count, max_words)
    if unknown not in ("drop", "keep"):
        raise InputError(f"unknown words are to 'drop' or to 'keep', not '{unknown}'")
    if not 0 <= held_out < 1:
        raise InputError(f"the share of lines held out must be in [0, 1), not {held_out}")
    files = text_files(path)
    split, split_name = _splitter(tokenizer)
    lines = _Lines(files, split, held_out, seed)
    chosen = [float(held_out), seed] if held_out else None
    folder = cache_folder(cache)
    key = digest(_FORMAT, split_name, min_count, max_words, unknown, chosen, content(files))

    def make() -> dict[str, Tensor]:
        vocabulary, total_words = _counted(lines, min_count, max_words, unknown)
        folder.mkdir(parents=True, exist_ok=True)
        return _encoded(lines, vocabulary, total_words, unknown, folder)

    try:
        entry = cached(folder, f"corpora/{key}", make)
    except OSError as error:
        raise InputError(f"cannot write the encoded corpus to {folder} ({error}): give cache=FOLDER") from error
    total_words, count, unknown_id = entry["numbers"].tolist()
    return Corpus(
        name or _name(path, files),
        entry["ids"],
        tuple(to_texts(entry["words"])),
        entry["counts"],
        total_words,
        count,
        None if unknown_id < 0 else unknown_id,
        entry["held_out"] if len(entry["held_out"]) else None,
    )


def _counted(lines: _Lines, min_count: int, max_words: int | None, unknown: str) -> tuple[dict[str, int], int]:
    """The vocabulary with the count of each word, in its order, and the number of all words."""
    counts: Counter[str] = Counter()
    total = closed = broken = forgotten = 0
    for parts, wrong in lines.parts("counting words"):
        fitted = [words for words, held in parts if not held]
        counts.update(chain.from_iterable(fitted))
        total += sum(map(len, fitted)) - counts.pop(_END, 0)
        closed += sum(words[-1] == _END for words, _ in parts)
        broken += wrong
        if len(counts) > MAX_COUNTED_WORDS:
            forgotten += 1
            counts = Counter({word: count for word, count in counts.items() if count > forgotten})
    if broken:
        warnings.warn(f"{broken:,} of {closed:,} lines are not UTF-8: wrong bytes are read as U+FFFD", stacklevel=3)
    if forgotten:
        warnings.warn(
            f"there are more than {MAX_COUNTED_WORDS:,} distinct words: those seen {forgotten} times or less so far "
            f"were forgotten on the way, so counts may be up to {forgotten} too low",
            stacklevel=3,
        )
    if not total:
        beside = " beside the lines held out" if closed else ""
        raise InputError(f"{lines.files[0]}{' and the other files' * (len(lines.files) > 1)}: no words{beside}")
    if unknown == "keep":
        counts.pop(UNKNOWN, None)  # of text that has such words already: they are of the rest
    kept = frequent_words(counts, min_count, max_words)
    if unknown == "keep":
        kept = frequent_words(kept | {UNKNOWN: total - sum(kept.values())}, 0, None)
    return kept, total


def _encoded(
    lines: _Lines, vocabulary: dict[str, int], total_words: int, unknown: str, folder: Path
) -> dict[str, Tensor]:
    """The entry of the cache. Ids are mapped from temporary files in `folder`, because they may not fit in memory."""
    number = {word: i for i, word in enumerate(vocabulary)} | {_END: BORDER}
    other = number[UNKNOWN] if unknown == "keep" else _DROPPED
    with TemporaryFile(dir=folder) as kept_file, TemporaryFile(dir=folder) as held_out_file:
        writers = kept, held_out = _IdWriter(kept_file), _IdWriter(held_out_file)
        for parts, _ in lines.parts("encoding words"):
            for is_held_out, writer in enumerate(writers):
                words = chain.from_iterable(words for words, held in parts if held == is_held_out)
                ids = np.fromiter(map(number.get, words, repeat(other)), np.int32)
                writer.write(ids[ids != _DROPPED])
        if lines.held_out and not held_out.lines:
            raise InputError(
                f"held_out={lines.held_out} beside {kept.lines:,} lines holds out no word of the vocabulary"
            )
        return {
            "ids": kept.ids(),
            "held_out": held_out.ids(),
            "words": from_texts(list(vocabulary)),
            "counts": torch.tensor(list(vocabulary.values()), dtype=torch.int64),
            "numbers": torch.tensor([total_words, kept.lines, max(other, -1)]),
        }


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
        self._file.write(ids.tobytes())

    def ids(self) -> Tensor:
        """All that was written, [n] int32, mapped from the file."""
        self._file.flush()
        if not self._file.tell():
            return torch.empty(0, dtype=torch.int32)
        return torch.from_numpy(np.memmap(self._file, np.int32))


def _splitter(tokenizer: str | None) -> tuple[Callable[[str], list[str]], str]:
    """How a line becomes words, and a text that differs where this does."""
    if tokenizer is None:
        return tokens, "tokens"
    if tokenizer == "spaces":
        return str.split, "spaces"
    pieces = HFTokenizer(tokenizer)
    return pieces.split, pieces.digest()


def _name(path: Text | Sequence[Text], files: Sequence[Path]) -> str:
    whole = Path(path).expanduser() if isinstance(path, str | os.PathLike) else files[0]
    return (whole.resolve() if whole.is_dir() else files[0]).name.split(".")[0]
