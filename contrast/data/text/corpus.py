"""Text as one array of word ids, for word embeddings and language models: counted, encoded and kept on disk.

V words, T places of the array.
"""

import json
import math
import os
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from contrast.data.images.cache import default_folder, digest
from contrast.data.text.corpus_files import BORDER, IdWriter, building, load
from contrast.data.text.text_files import Text, blocks, content, text_files
from contrast.data.text.tokenizer import HFTokenizer, tokens
from contrast.errors import InputError

UNKNOWN = "<unk>"
MOST_WORDS = 5_000_000  # distinct words counted at once, some 500 MB
_FORMAT = "1"  # part of every key: to change when the same files are to give other ids
_END = "\n"  # stands for the end of a line among its words; no word holds it
_DROPPED = -2
_PLAIN = b"abcdefghijklmnopqrstuvwxyz0123456789_ \t\r"


@dataclass(frozen=True, eq=False)
class Corpus:
    """Encoded text. The tensors of ids are mapped from files: they take no memory until they are read.

    ids          [T] int32: the words of a line by their ids, then BORDER (-1), then the next line. No line is empty.
                 Two places of a span ids[a:b] lie in one line if the sum of (ids == BORDER) up to either is the same
    words        [V] by falling count, equal counts by letter; the id of a word is its place
    counts       [V] int64, of the words in the lines of `ids`
    total_words  words that were read for `ids`, those that were dropped included: words per second count these
    lines        in `ids`
    unknown      the id of <unk>; None if other words were dropped
    held_out     int32, lines in the form of `ids` that are not in it; None if none are held out
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


class Lines(NamedTuple):
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
            found = []
            for place, text in enumerate(block.texts):
                words = self.split(text)
                if words and not begun:
                    number, begun = number + 1, True
                held = math.floor((number + 1) * self.held_out + phase) > math.floor(number * self.held_out + phase)
                if begun and not (block.open and place == len(block.texts) - 1):
                    words.append(_END)
                    begun = False
                if words:
                    found.append((words, held))
            yield found, block.broken


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
    tokenizer  None: words and marks in small letters (`tokenizer.tokens`); "spaces": what stands between
               spaces, as it is, for text that is split already; or a tokenizer of transformers, by name or folder
    held_out   share of the lines that go to `Corpus.held_out`, evenly spread from a place that `seed` draws; they do
               not count for the vocabulary
    cache      folder of encoded text, by default $CONTRAST_CACHE or ~/.cache/contrast; files are known by content

    Text is read twice, block by block: to count, where memory grows with the number of distinct words only, and to
    encode. When these exceed MOST_WORDS, those seen once so far are forgotten, the next time those seen twice, and so
    on (word2vec's ReduceVocab); a warning says so. Wrong UTF-8 is read as U+FFFD; a warning counts the lines.

    Raises InputError for a path that is not there or cannot be read, text without words, a vocabulary without words,
    a part held out that has no line, a cache that cannot be written, and values out of range.
    """
    _check(min_count, max_words, unknown, held_out)
    files = text_files(path)
    split, known_as = _splitter(tokenizer)
    lines = Lines(files, split, held_out, seed)
    chosen = f"{float(held_out)} {seed}" if held_out else "all"
    settings = [_FORMAT, known_as, str(min_count), str(max_words), unknown, chosen]
    root = default_folder() if cache is None else Path(cache).expanduser()
    folder = root / "corpora" / digest([*settings, *content(files)])
    found = load(folder)
    if found is None:
        with building(folder) as place:
            facts = _counted(lines, min_count, max_words, unknown)
            facts["lines"] = _encode(lines, facts, place)
            (place / "facts.json").write_text(json.dumps(facts))
        found = load(folder)
    if found is None:
        raise InputError(f"the encoded corpus {folder} was removed or damaged as soon as it was written")
    facts, ids, held = found
    counts = torch.tensor(facts.pop("counts"), dtype=torch.int64)
    words = tuple(facts.pop("words"))
    return Corpus(name or _name(path, files), ids, words, counts, held_out=held, **facts)


def _counted(lines: Lines, min_count: int, max_words: int | None, unknown: str) -> dict[str, Any]:
    """Words and counts of the vocabulary, total_words and the id of <unk>."""
    counts: Counter[str] = Counter()
    total = closed = broken = forgotten = 0
    for found, wrong in lines.parts("counting words"):
        kept = [words for words, held in found if not held]
        counts.update(chain.from_iterable(kept))
        total += sum(map(len, kept)) - counts.pop(_END, 0)
        closed += sum(words[-1] == _END for words, _ in found)
        broken += wrong
        if len(counts) > MOST_WORDS:
            forgotten += 1
            counts = Counter({word: count for word, count in counts.items() if count > forgotten})
    if broken:
        warnings.warn(f"{broken:,} of {closed:,} lines are not UTF-8: wrong bytes are read as U+FFFD", stacklevel=3)
    if forgotten:
        warnings.warn(
            f"there are more than {MOST_WORDS:,} distinct words: those seen {forgotten} times or less so far were "
            f"forgotten on the way, so counts may be up to {forgotten} too low",
            stacklevel=3,
        )
    if not total:
        beside = " beside the lines held out" if closed else ""
        raise InputError(f"{lines.files[0]}{' and the other files' * (len(lines.files) > 1)}: no words{beside}")
    if unknown == "keep":
        counts.pop(UNKNOWN, None)  # of text that has such words already: they are of the rest
    ranked = sorted((-count, word) for word, count in counts.items() if count >= min_count)[:max_words]
    if not ranked:
        count, word = max(((count, word) for word, count in counts.items()), default=(0, ""))
        raise InputError(
            f"none of {len(counts):,} words occurs {min_count} times: the vocabulary would be empty; "
            f"the most frequent, '{word}', occurs {count} times"
        )
    if unknown == "keep":
        ranked = sorted([*ranked, (-total - sum(count for count, _ in ranked), UNKNOWN)])
    words = [word for _, word in ranked]
    return {
        "words": words,
        "counts": [-count for count, _ in ranked],
        "total_words": total,
        "unknown": words.index(UNKNOWN) if unknown == "keep" else None,
    }


def _encode(lines: Lines, facts: Mapping[str, Any], place: Path) -> int:
    """Writes ids.bin and held_out.bin; returns the lines of the first."""
    number = {word: i for i, word in enumerate(facts["words"])} | {_END: BORDER}
    other = _DROPPED if facts["unknown"] is None else facts["unknown"]
    with IdWriter(place / "ids.bin") as kept, IdWriter(place / "held_out.bin") as aside:
        for found, _ in lines.parts("encoding words"):
            for writer, which in ((kept, False), (aside, True)):
                words = chain.from_iterable(words for words, held in found if held == which)
                ids = np.fromiter(map(number.get, words, repeat(other)), np.int32)
                writer.write(ids[ids != _DROPPED])
    if lines.held_out and not aside.lines:
        raise InputError(f"held_out={lines.held_out} beside {kept.lines:,} lines holds out no word of the vocabulary")
    return kept.lines


def _splitter(tokenizer: str | None) -> tuple[Callable[[str], list[str]], str]:
    """How a line becomes words, and a text that differs where this does."""
    if tokenizer is None:
        return _words, "tokens"
    if tokenizer == "spaces":
        return str.split, "spaces"
    pieces = _Pieces(tokenizer)
    return pieces.split, pieces.known_as()


def _words(text: str) -> list[str]:
    """`tokens(text)`, in a third of the time where there are only small letters, digits and spaces."""
    if text.isascii() and not text.encode().translate(None, _PLAIN):
        return text.split()
    return tokens(text)


class _Pieces(HFTokenizer):
    """The tokens of a tokenizer of transformers as words, without its special tokens."""

    def split(self, text: str) -> list[str]:
        return self._tokenizer.tokenize(text, verbose=False)

    def known_as(self) -> str:
        inner = getattr(self._tokenizer, "backend_tokenizer", None)
        rules = json.dumps(sorted(self._tokenizer.get_vocab().items())) if inner is None else inner.to_str()
        return f"{type(self._tokenizer).__name__} {digest([rules])}"


def _name(path: Text | Sequence[Text], files: Sequence[Path]) -> str:
    whole = isinstance(path, str | os.PathLike) and Path(path).expanduser().is_dir()
    return (Path(path).expanduser().resolve() if whole else files[0]).name.split(".")[0]  # type: ignore[arg-type]


def _check(min_count: int, max_words: int | None, unknown: str, held_out: float) -> None:
    if min_count < 1 or (max_words is not None and max_words < 1):
        raise InputError(f"min_count ({min_count}) and max_words ({max_words}) of a vocabulary must be 1 or more")
    if unknown not in ("drop", "keep"):
        raise InputError(f"unknown words are to 'drop' or to 'keep', not '{unknown}'")
    if not 0 <= held_out < 1:
        raise InputError(f"the share of lines held out must lie in [0, 1), not {held_out}")
