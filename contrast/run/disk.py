"""A full disk: a warning before training, and the line that a run ends with."""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contrast.atomic import FULL
from contrast.errors import InputError
from contrast.run.errors import causes, task_error
from contrast.run.folder import resume_command
from contrast.run.whole import newest


def failure(error: BaseException, run_dir: Path) -> str | None:
    """The line for an error that ended a run: a full disk, or what `task_error` knows; None for any other error."""
    cause = next((each for each in causes(error) if isinstance(each, InputError | OSError)), None)
    if isinstance(cause, OSError) and cause.errno in FULL:
        return out_of_space(cause, run_dir)
    return task_error(error)


@contextmanager
def named_errors(run_dir: Path) -> Iterator[None]:
    """Turns an OSError of the block into an InputError, if `failure` has a line for it."""
    try:
        yield
    except OSError as error:
        if (line := failure(error, run_dir)) is None:
            raise
        raise InputError(line) from error


def out_of_space(error: OSError, run_dir: Path) -> str:
    """The line for an `error` that a full disk caused, with how to resume the run."""
    place = Path(str(error.filename or run_dir))
    line = f"{os.strerror(error.errno or 0).lower()}: {free_text(place)}, and more is needed"
    if (last := newest(run_dir)) is None:
        return f"{line}: make room, and give the command again"
    checkpoint, step = last
    target = run_dir if checkpoint.name == "last.ckpt" else checkpoint
    return f"{line}; the last checkpoint is {checkpoint} of step {step}: make room, then {resume_command(target)}"


def warn_of_little_room(folder: Path, size: int) -> None:
    """Warns if another checkpoint of about `size` bytes does not fit beside those in `folder`.

    A new checkpoint is written completely before it takes the place of the old one, so it needs room of its own.
    """
    bytes_free, files_free = free(folder)
    if bytes_free < size or files_free == 0:
        warnings.warn(f"a checkpoint takes about {size / 1e6:.1f} MB: {free_text(folder)}", stacklevel=2)


def free(path: Path) -> tuple[int, int | None]:
    """Bytes and files that the file system of `path` has room for; None if it has no limit of files."""
    path = next(up for up in (path.absolute(), *path.absolute().parents) if up.exists())
    files = None
    if hasattr(os, "statvfs"):
        status = os.statvfs(path)
        files = status.f_favail if status.f_files else None
    return shutil.disk_usage(path).free, files


def free_text(path: Path) -> str:
    """`/scratch has room for 0.1 MB`: the folder where the file system of `path` is mounted, and what is free on it."""
    mount = next(up for up in (path.absolute(), *path.absolute().parents) if os.path.ismount(up))
    bytes_free, files_free = free(path)
    return f"{mount} has room for {bytes_free / 1e6:.1f} MB{', but for no more files' if files_free == 0 else ''}"
