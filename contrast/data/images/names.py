"""Names of files in one piece of memory."""

from __future__ import annotations

import copy
import os
from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class Names(Sequence[str]):
    """Names of files as bytes in one piece: a long name costs its own length only, and no worker copies it."""

    def __init__(self, names: Iterable[str]) -> None:
        data, ends = bytearray(), array("q")
        for name in names:
            data += os.fsencode(name)  # also a name that is not UTF-8
            ends.append(len(data))
        self._data, self._ends = bytes(data), np.array(ends, dtype=np.int64)
        self._starts = np.concatenate([[0], self._ends])[:-1]

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice | np.ndarray) -> Names: ...

    def __getitem__(self, row: int | slice | np.ndarray) -> str | Names:
        """The name at a row; or those at several rows, which share the bytes."""
        if isinstance(row, slice | np.ndarray):
            part = copy.copy(self)
            part._starts, part._ends = self._starts[row], self._ends[row]
            return part
        return os.fsdecode(self._data[self._starts[row] : self._ends[row]])
