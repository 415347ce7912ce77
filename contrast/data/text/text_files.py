"""Lines of text files, compressed or not, in blocks: memory stays small however many lines there are, or how long."""

import bz2
import codecs
import glob
import gzip
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b
from pathlib import Path
from typing import IO, NamedTuple

from tqdm import tqdm

from contrast.data.store import named_errors
from contrast.errors import InputError

BLOCK = 1 << 20  # bytes read at a time, after decompression
_MAX_WORD = 16 * BLOCK  # characters; a longer word is cut
_WRONG = "\udc80"  # stands for bytes that are not UTF-8 until their line is counted; no text in UTF-8 holds it
_OPEN: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {
    ".xz": lzma.open,
    ".gz": gzip.open,  # type: ignore[dict-item]
    ".bz2": bz2.open,
}

Text = str | os.PathLike[str]


class Block(NamedTuple):
    """Lines, or parts of lines, in order and without their ends."""

    texts: list[str]
    open: bool  # the last one continues in the next block
    broken: int  # lines that turn out not to be UTF-8; each wrong byte is read as U+FFFD


def text_files(path: Text | Sequence[Text]) -> list[Path]:
    """The files that `path` names: a file, a folder (all files below, sorted), a glob (sorted), or a list of these.

    Hidden files and folders (.name) of a folder are passed over. Raises InputError for a path that does not exist,
    and for a folder or a list with no file in it.
    """
    if not isinstance(path, str | os.PathLike):
        if not path:
            raise InputError("a corpus of no files: the list of paths is empty")
        return [file for part in path for file in text_files(part)]
    root = Path(path).expanduser()
    if root.is_file():
        return [root]
    if root.is_dir():
        below = sorted(file for file in root.rglob("*") if file.is_file())
        files = [file for file in below if not any(part.startswith(".") for part in file.relative_to(root).parts)]
        if not files:
            raise InputError(f"the folder {root} has no files")
        return files
    files = sorted(Path(name) for name in glob.glob(str(root), recursive=True) if Path(name).is_file())
    if not files:
        raise InputError(f"no file matches {root}" if re.search(r"[*?\[]", str(root)) else f"{root} does not exist")
    return files


def content(files: Sequence[Path]) -> list[str]:
    """A digest of the bytes of each file as they are on the disk, 32 hex digits."""
    digests = []
    with _bar(files, "reading") as bar:
        for file in files:
            state = blake2b(digest_size=16)
            with _named(file), open(file, "rb") as opened:
                while part := opened.read(BLOCK):
                    state.update(part)
                    bar.update(len(part))
            digests.append(state.hexdigest())
    return digests


def blocks(files: Sequence[Path], desc: str, size: int = BLOCK) -> Iterator[Block]:
    """The lines of all files, by about `size` bytes; a bar counts the bytes on the disk.

    A line ends at a line feed and at the end of its file. One that is longer than a block comes in parts, each from
    the space between two words on. The suffix says how a file is compressed: .xz, .gz, .bz2.

    Raises InputError for a file that cannot be read, is not what its suffix says or ends too early, or that holds NUL
    bytes, which no text in UTF-8 does.
    """
    with _bar(files, desc) as bar:
        for file in files:
            decoder = codecs.getincrementaldecoder("utf-8-sig")("contrast.mark_wrong")  # passes over a byte order mark
            rest, before, read = "", bar.n, b"-"
            counted = False  # whether the line that `rest` continues is among those that are not UTF-8
            with _named(file), open(file, "rb") as opened, _OPEN.get(file.suffix, nullcontext)(opened) as stream:
                while read:
                    read = stream.read(size)
                    bar.update(before + opened.tell() - bar.n)
                    text = rest + decoder.decode(read, final=not read)
                    if "\0" in text:
                        raise InputError(f"{file} holds NUL bytes: it is not a text in UTF-8")
                    end = _cut(text) if read else len(text)
                    lines, rest = text[:end].split("\n"), text[end:]
                    wrong = [_WRONG in line for line in lines]
                    broken = sum(wrong) - (counted and wrong[0])
                    counted = wrong[-1] or (counted and len(lines) == 1)
                    is_open = bool(read and lines[-1])
                    if end:
                        lines = text[:end].replace(_WRONG, "\ufffd").removesuffix("\n").split("\n")
                        yield Block(lines, is_open, broken)


def _cut(text: str) -> int:
    """Where the last line ends; in a line without end where the last word begins, from the space before it on."""
    if end := text.rfind("\n") + 1:
        return end
    space = max(text.rfind(" "), text.rfind("\t"))
    if space > 0:
        return space
    return len(text) - 1 if len(text) >= _MAX_WORD else 0  # something is left, so that a later block ends the line


def _mark_wrong(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return _WRONG, error.end


codecs.register_error("contrast.mark_wrong", _mark_wrong)


def _named(file: Path) -> AbstractContextManager[None]:
    return named_errors((OSError, EOFError, lzma.LZMAError, zlib.error), f"{file} cannot be read")


def _bar(files: Sequence[Path], desc: str) -> tqdm:
    total = sum(file.stat().st_size for file in files)
    return tqdm(total=total, desc=desc, unit="B", unit_scale=True, delay=1, leave=False)
