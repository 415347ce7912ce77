"""One cache on disk for what is costly to make: decoded images, encoded text, features.

    folder = cache_folder(cache)  # the user's folder, or the default one
    key = digest(encoder, "cifar10", {"image_size": 32})  # of everything that the result depends on
    features = cached(folder, f"features/{key}", lambda: {"features": compute()})["features"]

An entry is one file of safetensors that is whole or absent, so many processes may share a folder: two that make the
same entry write the same bytes, and it does not matter which is last. Every tensor has a checksum. The entries that
were not used for the longest time are removed where a new one exceeds $CONTRAST_CACHE_GB (50 by default).
"""

import json
import logging
import os
import re
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from contrast.atomic import WRITING, replacing
from contrast.errors import named_errors, one_line

log = logging.getLogger(__name__)

_STALE_SECONDS = 24 * 3600  # an unfinished file of this age belongs to a process that died
_warned: set[str] = set()  # folders that could not be written


def cache_folder(folder: str | Path | None = None) -> Path:
    """`folder`; or, if it is None, $CONTRAST_CACHE or ~/.cache/contrast."""
    return Path(folder or os.environ.get("CONTRAST_CACHE") or "~/.cache/contrast").expanduser()


def digest(*parts: object) -> str:
    """32 hexadecimal digits (BLAKE2b) of tensors, modules (their state dict), bytes and whatever JSON can hold.

    The length of every part counts as well, so that ("ab", "c") and ("a", "bc") differ.
    """
    state = blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, nn.Module):
            part = [[name, digest(value)] for name, value in sorted(part.state_dict().items())]
        if isinstance(part, Tensor):
            kind, content = f"{part.dtype} {list(part.shape)}", _bytes(part)
        elif isinstance(part, bytes):
            kind, content = "bytes", memoryview(part)
        else:
            kind, content = "json", memoryview(json.dumps(part, sort_keys=True).encode())
        state.update(f"{kind} {len(content)}\n".encode())
        state.update(content)
    return state.hexdigest()


def cached(
    folder: str | Path, key: str, make: Callable[[], dict[str, Tensor]], pool: Executor | None = None
) -> dict[str, Tensor]:
    """The tensors in `folder/key.safetensors`, or those of `make()`, which are then kept there.

    Tensors are on the CPU and mapped from the file: they take no memory until they are read, and processes share it.
    What is written to them stays in this process. `key` is a digest of all that the tensors depend on; it may begin
    with a subfolder ("images/...").

    A damaged file is made again, with a warning. If the file cannot be written, one warning for each folder says so,
    and the tensors are returned all the same.

    pool  writes the file while the tensors that `make` returned are already in use; None: it is written first
    """
    path = Path(folder) / f"{key}.safetensors"
    if os.path.exists(path):  # False, too, in a folder of which this process may not know
        try:
            tensors = _read(path)
            with suppress(OSError):  # another user's file
                os.utime(path)  # `_make_room` removes the oldest
            if (size := path.stat().st_size) > 1e6:
                log.info("from the cache: %s (%.3g MB)", path, size / 1e6)
            return tensors
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
            warnings.warn(f"the cache file {path} is damaged ({one_line(error)}): it is made again", stacklevel=2)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in make().items()}

    def keep() -> dict[str, Tensor]:
        try:
            _remove_stale(path.parent)
            with replacing(path) as temporary:
                save_tensors(tensors, temporary, {name: _checksum(tensor) for name, tensor in tensors.items()})
            _make_room(Path(folder), path)
            return _read(path)
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
            if str(folder) not in _warned:
                _warned.add(str(folder))
                message = f"cannot write to the cache in {folder} ({one_line(error)}): going on without"
                warnings.warn(message, stacklevel=3)
            return tensors

    if pool is None:
        return keep()
    pool.submit(keep)
    return tensors


def entries(folder: Path) -> dict[Path, os.stat_result]:
    """The files of the cache in `folder` and its subfolders; the least recently used first."""
    found = {}
    for path in folder.rglob("*"):
        if re.fullmatch(r"[0-9a-f]{32}\.(safetensors|txt)", path.name):
            with suppress(FileNotFoundError):  # another process removed it
                found[path] = path.stat()
    return dict(sorted(found.items(), key=lambda item: item[1].st_mtime_ns))


def limit_gb() -> float:
    """What the cache may take, in GB."""
    text = os.environ.get("CONTRAST_CACHE_GB", "50")
    with named_errors((ValueError,), "CONTRAST_CACHE_GB is a number of GB"):
        return float(text)


def _make_room(folder: Path, kept: Path) -> None:
    """Removes the entries that were not used for the longest time, down to the limit, and never the one at `kept`."""
    found = entries(folder)
    excess = sum(status.st_size for status in found.values()) - limit_gb() * 1e9
    for path, status in found.items():
        if excess > 0 and path != kept:
            path.unlink(missing_ok=True)
            excess -= status.st_size


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a file of safetensors with the permissions of its folder: the library lets only the owner read it."""
    save_file(tensors, path, metadata)
    path.chmod(path.parent.stat().st_mode & 0o666)


def from_texts(texts: Sequence[str]) -> Tensor:
    """Texts as one uint8 tensor, for an entry of the cache."""
    return torch.frombuffer(bytearray(json.dumps(list(texts)).encode()), dtype=torch.uint8)


def to_texts(tensor: Tensor) -> list[str]:
    """The texts of which `from_texts` made `tensor`."""
    return json.loads(bytes(_bytes(tensor)))


def _read(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        tensors, checksums = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    for name, tensor in tensors.items():
        if checksums[name] != _checksum(tensor):
            raise ValueError(f"the checksum of {name} differs")
    return tensors


def _checksum(tensor: Tensor) -> str:
    return f"{zlib.crc32(_bytes(tensor), zlib.crc32(f'{tensor.dtype} {list(tensor.shape)}'.encode())):08x}"


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _remove_stale(folder: Path) -> None:
    for path in folder.glob(f"{WRITING}*"):
        with suppress(FileNotFoundError):  # another process removed it
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
