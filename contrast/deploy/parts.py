"""Vectors of many images in parts on disk: several processes can write them, and an interrupted run can continue.

N images, F features, P images in a part.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.format import open_memmap

from contrast.atomic import replacing


class Part(NamedTuple):
    """Rows `start` to `stop` (exclusive) of a split; `first` is the row of its first image among all splits."""

    split: str
    start: int
    stop: int
    first: int

    def __len__(self) -> int:
        return self.stop - self.start


class Parts:
    """The parts of all splits, in order. Each part is one file in `folder`, which is either complete or absent.

    counts  number of images of each split
    size    P; the last part of a split may be smaller
    """

    def __init__(self, folder: Path, counts: Mapping[str, int], size: int) -> None:
        self.folder = folder
        self.parts: list[Part] = []
        first = 0
        for split, count in counts.items():
            for start in range(0, count, size):
                self.parts.append(Part(split, start, min(start + size, count), first + start))
            first += count
        self.total = first

    def file(self, part: Part) -> Path:
        return self.folder / f"{part.split}_{part.start:012}.npy"

    def of_rank(self, rank: int, world_size: int) -> tuple[list[Part], list[Part]]:
        """The parts of a rank: those that have been written, and those that are missing."""
        own = self.parts[rank::world_size]
        return [part for part in own if self.file(part).is_file()], [p for p in own if not self.file(p).is_file()]

    def write(self, part: Part, vectors: np.ndarray) -> None:
        """Saves the vectors [P, F] of a part."""
        assert len(vectors) == len(part)
        with replacing(self.file(part)) as temporary, open(temporary, "wb") as file:
            np.save(file, vectors)

    def joined(self) -> np.ndarray:
        """All vectors, float32 [N, F], in a memory-mapped file."""
        width = np.load(self.file(self.parts[0]), mmap_mode="r").shape[1]
        vectors = new_memmap(self.folder / "joined.npy", (self.total, width))
        for part in self.parts:
            vectors[part.first : part.first + len(part)] = np.load(self.file(part))
        return vectors


def new_memmap(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A new float32 array in a memory-mapped .npy file.

    Raises OSError if the disk has no room for it. macOS cannot reserve room: there, writing to a full disk ends the
    process.
    """
    try:
        array = open_memmap(path, "w+", np.float32, shape)
        with path.open("r+b") as file:
            if hasattr(os, "posix_fallocate"):  # it begins as one hole; a full disk could not fill it
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return array
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
