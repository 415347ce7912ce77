"""What a file of tensors says it holds, compared with its size before memory is taken for it."""

import mmap
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from contrast.errors import InputError

# the end of a name in a pickle that weights_only=True lets through: zeros, as many as it says
BUFFER = b"\nbytearray\n"


def check_archive(path: Path) -> None:
    """InputError for a file of `torch.save` that would grow in memory beyond its size.

    Two things do: entries that are compressed, or lie over each other, and a buffer of zeros that its pickle requests.
    torch itself compares each tensor with its bytes. A damaged file passes; whoever reads it says what is wrong.
    """
    size, declared, buffer = path.stat().st_size, 0, False
    with suppress(zipfile.BadZipFile, ValueError, OSError, EOFError):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            is_zip = content[:4] == b"PK\x03\x04"  # as torch decides: an archive may also hang on another file
            buffer = not is_zip and content.find(BUFFER) >= 0  # of torch before 1.6: pickles, then the weights
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                declared = sum(entry.file_size for entry in archive.infolist())
                pickles = [name for name in archive.namelist() if name.endswith(".pkl") and declared <= size]
                buffer = any(BUFFER in archive.read(name) for name in pickles)
    if declared > size:
        raise InputError(f"{path} of {size:,} bytes says that it holds {declared:,}: no checkpoint does")
    if buffer:
        raise InputError(f"{path} requests memory that it does not fill: no checkpoint does")


def check_sizes(saved: object, path: Path) -> None:
    """InputError for tensors of more numbers than the file holds: a stride of 0 repeats one as often as it says."""
    size, seen, left = path.stat().st_size, set(), [saved]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor) and value.layout == torch.strided and value.numel() * value.element_size() > size:
            shape = list(value.shape)
            raise InputError(f"{path} of {size:,} bytes says that it holds {shape} of {value.dtype}: it cannot")
        left += value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else []
