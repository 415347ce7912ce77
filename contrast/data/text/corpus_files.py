"""Encoded text on disk: a folder that is whole or absent, with the ids as they lie in memory.

ids.bin, held_out.bin   int32, little-endian; what `Corpus` says of them
facts.json              words, counts and the rest
checksums.json          CRC-32 of the other files
"""

import json
import os
import shutil
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from contrast.atomic import WRITING
from contrast.errors import InputError

BORDER = -1  # closes a line among its ids
_BLOCK = 1 << 22  # bytes read at a time for a checksum
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)  # what reading it may raise
_STALE = 24 * 3600  # seconds after which an unfinished folder belongs to a process that died


class IdWriter:
    """Writes ids block after block to a new file; a border that no id precedes is left out, so no line is empty."""

    def __init__(self, path: Path) -> None:
        self.lines = 0  # closed so far
        self._file = open(path, "wb")  # noqa: SIM115
        self._closed = True

    def write(self, ids: np.ndarray) -> None:
        """ids [n] int32, with BORDER where a line ends."""
        if len(ids) == 0:
            return
        border = ids == BORDER
        before = np.concatenate([[self._closed], border[:-1]])
        self._closed = bool(border[-1])
        ids = ids[~(border & before)]
        self.lines += int((ids == BORDER).sum())
        self._file.write(ids.astype("<i4").tobytes())

    def __enter__(self) -> "IdWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def load(folder: Path) -> tuple[dict[str, Any], Tensor, Tensor | None] | None:
    """The facts of an encoded corpus, its ids and those held out, mapped; None if there is none that is sound."""
    if not folder.exists():
        return None
    try:
        return _read(folder)
    except _DAMAGED as error:
        warnings.warn(f"the encoded corpus {folder} is damaged ({error}): building it again", stacklevel=3)
        return None


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` at the end of the block, with the checksums of its files.

    If another process has put a sound one there by then, that one stays: it holds the same. A damaged one is mended. If
    the block fails, nothing is left. Raises InputError where nothing can be written.
    """
    temporary = folder.with_name(f"{WRITING}{uuid4().hex[:8]}-{folder.name}")
    try:
        temporary.mkdir(parents=True)
        _remove_stale(folder.parent)
        yield temporary
        sums = {file.name: _crc32(file) for file in sorted(temporary.iterdir())}
        (temporary / "checksums.json").write_text(json.dumps(sums))
        _move(temporary, folder)
    except OSError as error:
        raise InputError(f"cannot write the encoded corpus to {folder.parent} ({error}): give cache=FOLDER") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move(temporary: Path, folder: Path) -> None:
    try:
        os.rename(temporary, folder)  # fails where a folder with files is in the way
    except OSError:
        if not folder.is_dir():
            raise
        with suppress(*_DAMAGED):
            _read(folder)
            return
        # File by file, so that no sound file is ever absent: others that mend it at this moment bring the same bytes
        for file in sorted(temporary.iterdir()):
            os.replace(file, folder / file.name)


def _read(folder: Path) -> tuple[dict[str, Any], Tensor, Tensor | None]:
    sums = json.loads((folder / "checksums.json").read_text())
    for name in ("facts.json", "ids.bin", "held_out.bin"):
        if _crc32(folder / name) != sums[name]:
            raise ValueError(f"the checksum of {name} differs")
    ids = _mapped(folder / "ids.bin")
    if ids is None:
        raise ValueError("it has no ids")
    return json.loads((folder / "facts.json").read_text()), ids, _mapped(folder / "held_out.bin")


def _mapped(path: Path) -> Tensor | None:
    """Ids of a file, [n] int32; what is written to them stays in this process. None of an empty file."""
    size = path.stat().st_size // 4
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.int32) if size else None


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while part := file.read(_BLOCK):
            value = zlib.crc32(part, value)
    return value


def _remove_stale(folder: Path) -> None:
    for left in folder.glob(f"{WRITING}*"):
        with suppress(FileNotFoundError):  # another process was quicker
            if time.time() - left.stat().st_mtime > _STALE:
                shutil.rmtree(left, ignore_errors=True)
