"""Decoded images on disk: files named by what they were made from, written whole or not at all."""

import json
import os
import secrets
import time
import warnings
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_STALE = 24 * 3600  # seconds after which a part file belongs to a process that died


def default_folder() -> Path:
    """$CONTRAST_CACHE, or ~/.cache/contrast."""
    return Path(os.environ.get("CONTRAST_CACHE") or Path.home() / ".cache" / "contrast")


def digest(parts: Iterable[str | bytes]) -> str:
    """32 hex digits of a sequence of texts and bytes; each is measured first, so that borders count."""
    state = blake2b(digest_size=16)
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        state.update(len(raw).to_bytes(8, "little") + raw)
    return state.hexdigest()


class Cache:
    """Tensors under keys, with a note each, in a folder that many processes may share.

    A file is complete or absent: it is written under another name, flushed to the disk and moved into place. Two
    processes that write one key write the same bytes, so it does not matter who is last. What cannot be written is a
    warning, since a cache is a convenience; what cannot be read, or fails its checksum, is absent.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder).expanduser() if folder is not None else default_folder()
        self._warned = False

    def load(self, key: str) -> tuple[Tensor, list[str]] | None:
        """The tensor under `key`, mapped from the file, and its note; None if there is none that is sound."""
        path = self._tensor_path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensor, facts = file.get_tensor("pixels"), file.metadata() or {}
            if facts.get("crc32") != _crc32(tensor):
                raise ValueError("its checksum differs")
            return tensor, json.loads(facts["note"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            warnings.warn(f"the cache file {path} is damaged ({error}): building it again", stacklevel=2)
            return None

    def save(self, key: str, tensor: Tensor, note: list[str]) -> None:
        facts = {"crc32": _crc32(tensor), "note": json.dumps(note)}
        self._write(self._tensor_path(key), lambda part: save_file({"pixels": tensor}, part, metadata=facts))

    def recall(self, name: str) -> str | None:
        """The text noted under `name`."""
        try:
            return self._text_path(name).read_text().strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    def note(self, name: str, text: str) -> None:
        self._write(self._text_path(name), lambda part: part.write_text(text))

    def _tensor_path(self, key: str) -> Path:
        return self.folder / "images" / f"{key}.safetensors"

    def _text_path(self, name: str) -> Path:
        return self.folder / "seen" / f"{name}.txt"

    def _write(self, path: Path, write: Callable[[Path], object]) -> None:
        part = path.parent / f".{path.name}.{secrets.token_hex(8)}.part"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(path.parent)
            write(part)
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            part.chmod(path.parent.stat().st_mode & 0o666)  # safetensors lets only the owner read
            os.replace(part, path)
        except (OSError, SafetensorError) as error:
            if not self._warned:
                warnings.warn(f"cannot write the cache in {self.folder} ({error}): going on without", stacklevel=3)
            self._warned = True
        finally:
            with suppress(OSError):
                part.unlink()


def _remove_stale(folder: Path) -> None:
    for part in folder.glob(".*.part"):
        try:
            if time.time() - part.stat().st_mtime > _STALE:
                part.unlink()
        except FileNotFoundError:
            continue  # another process was quicker


def _crc32(tensor: Tensor) -> str:
    return f"{zlib.crc32(tensor.reshape(-1).numpy().data):08x}"
