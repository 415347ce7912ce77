"""All words of a text as ids, in one pass over it, by several processes.

What is frequent enough to be a word of a vocabulary shows only at the end, so every word gets an id, in the order in
which they come. The ids of a vocabulary are then a matter of looking up numbers (contrast.data.text.corpus).
"""

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from itertools import count, islice
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from contrast.data.text.split import END, Splitter
from contrast.data.text.text_files import Block
from contrast.errors import InputError

LINE, FILE, NO_WORD = -1, -2, -3  # ids of a line feed, of the end of a file or a record, and of a word that is none
_PARALLEL = 1 << 23  # bytes; other processes are not started for less
_KNOWN = 1 << 17  # different words that an encoder remembers, about 20 MB: they cover nearly all of a text
_MANY, _LITTLE_MEMORY = 1_000_000, 1 << 28  # words for which memory is looked at, bytes of it that must be left


class Encoded(NamedTuple):
    """A block of text as an `Encoder` numbers its words: ids [n] int32, and how often each of the numbers occurs.

    words   those that are new, with the numbers from `first` on; 0: the encoder forgot all others
    """

    encoder: int
    first: int
    words: list[str]
    ids: np.ndarray
    numbers: np.ndarray  # [k], the different ones among the ids
    counts: np.ndarray  # [k]
    broken: list[int]  # numbers of the lines that are not UTF-8
    lines: int
    open: bool


class Words(NamedTuple):
    """The words of a text, [V] by id, their counts [V] int64, and what was noticed on the way.

    forgotten  words that occurred so often or less were forgotten now and then, and got another id when they came back
    """

    words: list[str]
    counts: np.ndarray
    broken: int
    lines: int
    forgotten: int


class Encoder:
    """Turns blocks of text into ids. A word is finished, and sent to another process, only when it is new.

    keeps  False: every word is new in every block
    """

    def __init__(self, splitter: Splitter, keeps: bool = True) -> None:
        self.splitter, self.max_known = splitter, _KNOWN if keeps else 0
        self.number: defaultdict[str, int] = defaultdict(
            count().__next__
        )  # of each word, in the order in which they come

    def __call__(self, block: Block) -> Encoded:
        broken: list[int] = []
        try:
            text = block.data.decode()
        except UnicodeDecodeError:
            text = block.data.decode(errors="replace")
            lines = enumerate(block.data.split(b"\n"))
            broken = [number for number, line in lines if line.decode(errors="replace").encode() != line]
        if len(self.number) > self.max_known:
            self.number = defaultdict(count().__next__)
        first, words = len(self.number), self.splitter.split(text)
        ids = np.fromiter(map(self.number.__getitem__, words), np.int32, len(words))
        finish = self.splitter.finish
        new = [word if word in ("\n", END) else finish(word) for word in islice(self.number, first, None)]
        counts = np.bincount(ids)
        numbers = np.flatnonzero(counts)
        return Encoded(os.getpid(), first, new, ids, numbers, counts[numbers], broken, text.count("\n"), block.open)


def encoded(encoder: Encoder, blocks: Iterable[Block], size: int, workers: int | None) -> Iterator[Encoded]:
    """All blocks in order, encoded on so many processes; None: one for each processor, if the text is of some size.

    A system without forks has one process. Tokenizers of transformers have threads of their own.
    """
    processes = len(os.sched_getaffinity(0)) if workers is None and sys.platform == "linux" else workers or 1
    if (
        processes == 1
        or sys.platform != "linux"
        or (workers is None and size < _PARALLEL)
        or encoder.splitter.has_threads
    ):
        yield from map(encoder, blocks)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, context, _start, (encoder, os.getpid())) as pool:
        waiting: deque[Future[Encoded]] = deque()  # not more than a few, so that memory stays small
        for block in blocks:
            waiting.append(pool.submit(_encode, block))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _start(encoder: Encoder, parent: int) -> None:
    """Of a process: the first one reacts to Ctrl-C, and none outlives it."""
    global _encoder
    _encoder = encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_encoder: Encoder


def _encode(block: Block) -> Encoded:
    return _encoder(block)


def write_ids(parts: Iterable[Encoded], file: IO[bytes], max_distinct: int | None) -> Words:
    """Writes the ids of all words to `file`, int32: LINE, FILE, and ids from 0.

    max_distinct  if there are more distinct words, those seen once so far are forgotten, the next time those seen
                  twice, and so on (word2vec's ReduceVocab); None: as many as fit in memory, or an InputError
    """
    numbers, counts = count(), np.zeros(1 << 16, np.int64)
    special = {"\n": LINE, END: FILE, "": NO_WORD}
    number = defaultdict[str, int](numbers.__next__, special)
    tables: dict[int, np.ndarray] = {}  # the id of each number of an encoder
    broken = lines = forgotten = 0
    was_open = was_broken = False
    for part in parts:
        new = np.fromiter(map(number.__getitem__, part.words), np.int32, len(part.words))
        table = new if part.first == 0 else np.concatenate([tables[part.encoder], new])
        tables[part.encoder] = table
        ids = table[part.numbers]
        is_word = ids >= 0
        while len(counts) <= ids.max(initial=0):
            counts = np.concatenate([counts, np.zeros_like(counts)])
        np.add.at(counts, ids[is_word], part.counts[is_word])
        of_text = table[part.ids]
        file.write((of_text[of_text != NO_WORD] if NO_WORD in ids else of_text).data)
        broken += len(part.broken) - (was_open and was_broken and part.broken[:1] == [0])
        was_broken = part.broken[-1:] == [part.lines] or (was_open and was_broken and part.lines == 0)
        was_open, lines = part.open, lines + part.lines
        distinct = len(number) - len(special)
        if max_distinct is not None and distinct > max_distinct:
            forgotten += 1
            for word in [word for word, i in number.items() if i >= 0 and counts[i] <= forgotten]:
                del number[word]
        elif distinct > _MANY and free_memory() < _LITTLE_MEMORY:
            raise InputError(
                f"{distinct:,} distinct words so far fill the memory: data.max_distinct={distinct // 2} forgets "
                "the rarest on the way"
            )
    words = [""] * next(numbers)
    for word, i in number.items():
        if i >= 0:
            words[i] = word
    return Words(words, counts[: len(words)], broken, lines, forgotten)


def free_memory() -> float:
    """Bytes of memory that this process can still take, as far as Linux and its limit on a container say."""
    free = [math.inf]
    with suppress(OSError, ValueError, IndexError):
        free.append(1024 * float(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]))
        group = Path("/sys/fs/cgroup")
        limit, used, uses = ((group / f"memory.{name}").read_text() for name in ("max", "current", "stat"))
        free.append(float(limit) - int(used) + int(uses.partition("\nfile ")[2].split()[0]))  # files can be read again
    return min(free)
