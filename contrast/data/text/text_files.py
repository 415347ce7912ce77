"""Lines of text files, compressed or not, in blocks: memory stays small however many lines there are, or how long."""

import bz2
import glob
import gzip
import lzma
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import IO, NamedTuple

from tqdm import tqdm

from contrast.errors import InputError

BLOCK = 1 << 20  # bytes read at a time, after decompression
_WHOLE = 16 * BLOCK  # a word longer than this is cut, between two characters
_MARK = b"\xef\xbb\xbf"  # byte order mark of UTF-8

Text = str | os.PathLike[str]


class Block(NamedTuple):
    """Lines, or parts of lines, in order and without their ends."""

    texts: list[str]
    open: bool  # the last one continues in the next block
    broken: int  # lines that turn out not to be UTF-8; each wrong byte is read as U+FFFD


def text_files(path: Text | Sequence[Text]) -> list[Path]:
    """The files that `path` names: a file, a folder (all files below, sorted), a glob (sorted), or a list of these.

    Hidden files and folders (.name) of a folder are passed over. Raises InputError for a path that is not there, and
    for a folder or a list with no file in it.
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


def content(files: Sequence[Path], progress: bool = True) -> list[str]:
    """A digest of the bytes of each file as it lies on the disk, 32 hex digits."""
    found = []
    with _bar(files, "reading", progress) as bar:
        for file in files:
            state = blake2b(digest_size=16)
            with _named(file), open(file, "rb") as opened:
                while part := opened.read(BLOCK):
                    state.update(part)
                    bar.update(len(part))
            found.append(state.hexdigest())
    return found


def blocks(files: Sequence[Path], desc: str, size: int = BLOCK, progress: bool = True) -> Iterator[Block]:
    """The lines of all files, by about `size` bytes; a bar counts the bytes on the disk.

    A line ends at a line feed and at the end of its file. One that is longer than a block comes in parts, each from
    the space between two words on. The suffix says how a file is compressed: .xz, .gz, .bz2.

    Raises InputError for a file that cannot be read, is not what its suffix says or ends too early, or that holds NUL
    bytes, which no text in UTF-8 does.
    """
    with _bar(files, desc, progress) as bar:
        for file in files:
            done, rest, first, carried = 0, b"", True, False
            with _named(file), open(file, "rb") as opened, _decompressed(file, opened) as stream:
                while True:
                    read = stream.read(size)
                    bar.update(opened.tell() - done)
                    done = opened.tell()
                    data = rest + (read.removeprefix(_MARK) if first else read)
                    first = False
                    end = _cut(data) if read else len(data)
                    if b"\0" in data:
                        raise InputError(f"{file} holds NUL bytes: it is not a text in UTF-8")
                    if end:
                        block, carried = _block(data[:end], ended=not read, carried=carried)
                        yield block
                    rest = data[end:]
                    if not read:
                        break


def _cut(data: bytes) -> int:
    """Where the last line ends; in a line without end where the last word begins, from the space before it on."""
    if end := data.rfind(b"\n") + 1:
        return end
    space = max(data.rfind(b" "), data.rfind(b"\t"))
    if space > 0:
        return space
    if len(data) < _WHOLE:
        return 0
    end = len(data) - 1
    while end and data[end] & 0xC0 == 0x80:  # within a character
        end -= 1
    return end or len(data)


def _block(data: bytes, ended: bool, carried: bool) -> tuple[Block, bool]:
    """The block, and whether the line that it leaves open is known not to be UTF-8; `carried`: the one it continues."""
    wrong: list[int] = []  # places of such lines
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode(errors="replace")
        wrong = [place for place, line in enumerate(data.split(b"\n")) if not _is_utf8(line)]
    texts = text.split("\n")
    last = len(texts) - 1
    broken = len(wrong) - (carried and 0 in wrong)  # each line is counted once
    carried = last in wrong or (carried and last == 0)
    if not texts[-1]:
        texts.pop()
        ended = True
    return Block(texts, not ended, broken), carried


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _decompressed(file: Path, opened: IO[bytes]) -> IO[bytes]:
    if file.suffix == ".xz":
        return lzma.open(opened)
    if file.suffix == ".gz":
        return gzip.open(opened)  # type: ignore[return-value]
    if file.suffix == ".bz2":
        return bz2.open(opened)
    return opened


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Errors of reading with the name of the file."""
    try:
        yield
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"{file} cannot be read: {' '.join(str(error).split())}") from error


def _bar(files: Sequence[Path], desc: str, progress: bool) -> tqdm:
    total = sum(file.stat().st_size for file in files)
    return tqdm(total=total, desc=desc, unit="B", unit_scale=True, delay=1, leave=False, disable=not progress)
