"""A lock on a run folder, so that two processes never work on the same run at the same time."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from contrast.atomic import FULL
from contrast.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"  # the file, which exists while a process works on the run


class InUse(InputError):
    """Another process works in the folder."""


@contextmanager
def locked(folder: Path, waits: bool = False) -> Iterator[None]:
    """Reserves `folder` for this process within the block. InUse names another process that has it.

    Raises InputError for a folder that cannot be written; OSError if the disk is full.

    waits  True: waits until the other process releases it, in place of InUse

    This is a POSIX record lock. It ends with its process, however that ends, so another process can resume the run of
    a killed one. Forked processes do not inherit it, so a worker that outlives its parent does not keep the run locked.
    It also works between the hosts of a network file system. On a file system without locks, the run goes on without
    one and prints a warning. On Windows there is no lock.
    """
    if fcntl is None:
        yield
        return
    path = folder / LOCK
    while True:
        try:
            file = path.open("a+")
        except OSError as error:
            if error.errno in FULL:
                raise
            reason = error.strerror or str(error)  # Python's own error for a pipe has only a text
            raise InputError(f"{folder} cannot be written: {reason}") from error
        with file:
            if (owner := _owner(file, waits)) is not None:
                raise InUse(f"{folder} is in use: {owner} works on this run")
            if not _is_at(path, file):
                continue  # its owner removed it a moment ago
            file.truncate(0)
            with suppress(OSError):  # a full disk: the lock holds, and the run ends at its next file
                os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}\n".encode())
            try:
                yield
            finally:
                if _is_at(path, file):
                    path.unlink()  # before the lock is released, after which another process may hold the file
        return


def _owner(file: IO[str], waits: bool) -> str | None:
    """Locks the file; None if this process has the lock now, else a description of the process that has it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):  # POSIX allows either
        file.seek(0)
        return file.read().strip() or "another process"
    except OSError as error:
        print(f"{file.name} cannot be locked ({error.strerror}): start no second process on this run", flush=True)
    return None


def _is_at(path: Path, file: IO[str]) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False
