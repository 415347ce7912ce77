"""Files that are whole or absent: written beside their place, then renamed into it."""

import csv
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from contrast.errors import InputError

WRITING = ".writing-"  # prefix of a file that is not complete
FULL = (errno.ENOSPC, errno.EDQUOT)  # errno of an OSError: the disk is full, or the user's quota is used up


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the folder of `path`. At the end of the block, the file written there replaces `path`.

    A reader, or a process killed at any moment, sees the old file or the new one. If the block fails, `path` stays
    as it was and the temporary file is removed. Creates the folder.

    An OSError names `path` in place of the temporary one. Where the disk is full, the error is an OSError that says so,
    whatever the writing library made of it: numpy raises an OSError without a number, torch a RuntimeError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{WRITING}{uuid4().hex[:8]}-{path.name}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        found = _os_error(temporary, error)
        with suppress(OSError):
            os.truncate(temporary, 0)  # frees its disk space at once, even if the error keeps the file open
            temporary.unlink()
        if found is None or (found.errno not in FULL and found.filename != str(temporary)):
            raise
        where = path if found.filename in (None, str(temporary)) else found.filename
        raise OSError(found.errno, found.strerror, str(where)) from error
    if os.name != "nt":
        _sync(path.parent)  # the rename survives a power cut


def rewrite(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file of text, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def rewrite_csv(path: str | os.PathLike[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes rows, the first of which has the headings, as a file of comma-separated values, whole or not at all."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Makes the folder and those around it. If the block fails, those that it has made go again, if they are empty."""
    created = [each for each in (folder, *folder.absolute().parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for each in created:
            with suppress(OSError):  # it holds files, or was never made
                each.rmdir()
        raise


def check_file(path: Path) -> None:
    """Raises InputError if no file can be written at `path`: it is a folder, or no file may be made beside it."""
    if path.is_dir():
        raise InputError(f"{path} is a folder, and a file is written there")
    around = next((each for each in path.absolute().parents if os.path.lexists(each)), None)
    if around is None or not around.is_dir():
        raise InputError(f"{path} cannot be written: {around or path.anchor} is not a folder")
    if not os.access(around, os.W_OK):
        raise InputError(f"{path} cannot be written: you may not write to {around}")


def _os_error(path: Path, error: BaseException) -> OSError | None:
    """The error itself, if it is an OSError with a number; for another, the OSError of a full disk, or None.

    Whether the disk is full shows when a block is appended to the file.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error
    if not isinstance(error, Exception):  # Ctrl-C
        return None
    try:
        with path.open("ab") as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as found:
        return found if found.errno in FULL else None
    return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
