"""The text of files, compressed or not, in blocks: memory stays small however many lines there are, or how long.

In a block, a line feed ends a line, and END a file, or a record of a file that has records.
"""

import bz2
import glob
import gzip
import json
import lzma
import os
import re
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from tempfile import NamedTemporaryFile
from time import time
from typing import IO, NamedTuple

from tqdm import tqdm

from contrast.atomic import replacing
from contrast.data.store import digest
from contrast.data.text.records import BOM, RECORDS, records
from contrast.errors import InputError, named_errors, need

BLOCK = 1 << 20  # bytes read at a time, after decompression
END = b"\x1c"  # of a file or a record: ASCII's file separator
STDIN = "-"
_MAX_WORD = 16 * BLOCK  # bytes; a longer word is cut
_MAX_LINE = 64 * BLOCK  # bytes of a first line that may be JSON
_LONGEST_NAME = 255  # bytes, of a file
_SETTLED = 2.0  # seconds after which a change of a file shows in its time of change
_ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"


@contextmanager
def _zstd(file: IO[bytes]) -> Iterator[IO[bytes]]:
    need(_ZSTD, "zstd", "a file of .zst")
    zstd = import_module(_ZSTD)
    try:
        with zstd.open(file) as stream:
            yield stream
    except zstd.ZstdError as error:  # of a module that is imported here only, so _DAMAGED cannot have it
        raise OSError(str(error)) from None


_OPEN: dict[str, Callable[[IO[bytes]], AbstractContextManager[IO[bytes]]]] = {
    ".xz": lzma.open,
    ".gz": gzip.open,  # type: ignore[dict-item]
    ".bz2": bz2.open,
    ".zst": _zstd,
}
_DAMAGED = (OSError, EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError)

Text = str | os.PathLike[str]


class Block(NamedTuple):
    """Whole lines, or a part of a line that is longer than a block."""

    data: bytes  # it ends with a line feed or END unless it is open
    open: bool  # the last line continues in the next block


@dataclass
class Texts:
    """Files that are read block by block.

    column  of JSON lines, tables, parquet and Arrow: where the text is
    skip    files and lines that are no text are passed over, and `skipped` lists them; otherwise they are errors
    alone   the text is one file: with a column, it is an error if it has none. Among others there may be plain text
    """

    files: list[Path]
    column: str | None = None
    skip: bool = False
    alone: bool = False
    skipped: list[str] = field(default_factory=list)

    def blocks(self, desc: str, size: int = BLOCK) -> Iterator[Block]:
        """The text of all files, by about `size` bytes; a bar counts the bytes on the disk.

        The suffix says how a file is compressed (.xz, .gz, .bz2, .zst, .zip) and whether it has records (.jsonl, .csv,
        .tsv, .parquet, .arrow). A line that is longer than a block comes in parts, each from the space between two
        words on.

        Raises InputError for a file that cannot be read, is not what its suffix says or ends too early, or that holds
        NUL bytes, which no text in UTF-8 does.
        """
        with _bar(self.files, desc) as bar:
            for file in self.files:
                before, is_open = bar.n, False
                try:
                    with named_errors(_DAMAGED, f"{file} cannot be read"), open(file, "rb") as opened:
                        for block in self._of(file, opened, size):
                            is_open = block.open
                            bar.update(before + opened.tell() - bar.n)
                            yield block
                except InputError as error:
                    if not self.skip:
                        raise
                    self.skipped.append(str(error))
                    if is_open:
                        yield Block(END, False)
                bar.update(before + file.stat().st_size - bar.n)

    def _of(self, file: Path, opened: IO[bytes], size: int) -> Iterator[Block]:
        """The blocks of one file."""
        name, suffix = file.name.lower(), file.suffix.lower()
        if suffix == ".zip":
            with zipfile.ZipFile(opened) as archive:
                for member in archive.infolist():
                    if not member.is_dir():
                        with archive.open(member) as stream:
                            yield from self._in(f"{file}/{member.filename}", member.filename.lower(), stream, size)
            return
        with _OPEN.get(suffix, nullcontext)(opened) as stream:
            yield from self._in(str(file), name.removesuffix(suffix) if suffix in _OPEN else name, stream, size)

    def _in(self, place: str, name: str, stream: IO[bytes], size: int) -> Iterator[Block]:
        """The blocks of a stream that messages call `place`, and whose suffix that of `name` is."""
        suffix = Path(name).suffix
        read = b"" if suffix in RECORDS else stream.read(size)
        begin = read.removeprefix(BOM).lstrip()
        if begin[:1] == b"{" and b"\n" not in begin:
            read += stream.readline(_MAX_LINE)  # whether it is JSON shows in the whole line only
        if suffix in RECORDS or _is_json(read):
            skipped = self.skipped if self.skip else None
            texts = records(place, suffix, read, stream, self.column, skipped)
            yield from self._joined(self._without_nul(place, texts), size)
            return
        if self.column is not None and self.alone and Path(place) in self.files:  # no member of an archive
            tables = f"the suffixes of files with columns are {', '.join(RECORDS)}"
            raise InputError(f"{place} is plain text, which has no column '{self.column}'; {tables}")
        rest, at, is_first, is_open, in_nul = b"", 0, True, False, False
        while True:
            following = stream.read(size) if read else b""
            if b"\0" in read:
                self._check_nul(place, read, at, is_first)
            data = rest + (read.removeprefix(BOM) if is_first else read)
            if in_nul or b"\0" in read:
                data = b"\0" * in_nul + data
                in_nul = b"\0" in data[data.rfind(b"\n") + 1 :]
                is_in_open = is_open and b"\0" in data.partition(b"\n")[0]
                data = b"\n" * is_in_open + re.sub(rb"[^\n]*\0[^\n]*\n?", b"", data)
            at, is_first = at + len(read), False
            if not following:
                yield Block(data.replace(END, b" ") + END, False)
                return
            end = _cut(data)
            if end:
                is_open = data[end - 1 : end] != b"\n"
                yield Block(data[:end].replace(END, b" "), is_open)
            rest, read = data[end:], following

    def _without_nul(self, place: str, texts: Iterator[str]) -> Iterator[str]:
        """The texts of records without NUL bytes; those with them are noted, or an InputError."""
        for number, text in enumerate(texts, start=1):
            if "\0" not in text:
                yield text
            elif self.skip:
                self.skipped.append(f"{place}, record {number:,}, which holds NUL bytes")
            else:
                raise InputError(
                    f"{place} holds NUL bytes (record {number:,}); data.on_error=skip leaves such records out"
                )

    def _joined(self, texts: Iterator[str], size: int) -> Iterator[Block]:
        """Blocks of many records; those before an error come before it."""
        joined = bytearray()
        try:
            for text in texts:
                joined += text.encode(errors="replace").replace(END, b" ") + END
                if len(joined) >= size:
                    yield Block(bytes(joined), False)
                    joined.clear()
        except (InputError, *_DAMAGED):
            yield Block(bytes(joined), False)
            raise
        yield Block(bytes(joined), False)

    def _check_nul(self, place: str, read: bytes, at: int, is_first: bool) -> None:
        """Notes the NUL bytes in what was read at byte `at`; InputError if it is no text at all."""
        byte, hint = at + read.index(b"\0"), "" if self.skip else "; data.on_error=skip leaves such files and lines out"
        try:
            read.decode()
        except UnicodeDecodeError as error:
            if is_first and error.end < len(read):
                raise InputError(f"{place} holds NUL bytes (byte {byte:,}): it is not a text in UTF-8{hint}") from None
        if not self.skip:
            raise InputError(f"{place} holds NUL bytes (byte {byte:,}){hint}")
        number = sum(b"\0" in line for line in read.split(b"\n"))
        self.skipped.append(f"{place}, from byte {byte:,}: {number:,} lines that hold NUL bytes")


def _is_json(read: bytes) -> bool:
    """Whether a file that begins so has an object of JSON on its first line, or an array of objects."""
    begin = read.removeprefix(BOM).lstrip()
    if begin[:1] != b"{":
        return re.match(rb'\[\s*\{\s*"', begin) is not None
    try:
        return isinstance(json.loads(begin.partition(b"\n")[0]), dict)
    except ValueError:
        return False


def _kind(file: Path) -> str:
    """What the suffixes say of how a file is read."""
    return "".join(suffix for suffix in file.suffixes if suffix.lower() in (*_OPEN, ".zip", *RECORDS)).lower()


def text_files(path: Text | Sequence[Text]) -> list[Path]:
    """The files that `path` names: a file, a folder (all files below, sorted), a glob (sorted), or a list of these.

    Hidden files and folders (.name) of a folder are passed over. Raises InputError for a path that does not exist,
    and for a folder or a list with no file in it.
    """
    if not path:
        raise InputError("a corpus of no files: the path, or the list of paths, is empty")
    if not isinstance(path, str | os.PathLike):
        return [file for part in path for file in text_files(part)]
    root = Path(path).expanduser()
    if max(len(os.fsencode(part)) for part in root.parts or ("",)) > _LONGEST_NAME:
        said = "no file has such a name; a text in memory is a list of sentences, for contrast.words.train"
        raise InputError(f"a path of {len(str(root)):,} characters, '{root!s:.60}...': {said}")
    with named_errors((OSError,), f"{root} cannot be read"):
        if root.is_file():
            return [root]
    if root.is_dir():
        below = sorted(file for file in root.rglob("*") if file.is_file())
        files = [file for file in below if not any(part.startswith(".") for part in file.relative_to(root).parts)]
        if not files:
            raise InputError(f"the folder {root} has no files")
        return files
    if root.exists():
        raise InputError(f"{root} is no regular file: data.path=- reads what comes through a pipe")
    files = sorted(Path(name) for name in glob.glob(str(root), recursive=True) if Path(name).is_file())
    if not files:
        raise InputError(f"no file matches {root}" if re.search(r"[*?\[]", str(root)) else f"{root} does not exist")
    return files


@contextmanager
def with_stdin(path: Text | Sequence[Text], folder: Path) -> Iterator[Text | Sequence[Text]]:
    """`path`; for "-" a file in `folder` with all that comes from the standard input, which goes at the end."""
    if path != STDIN:
        yield path
        return
    folder.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=folder, prefix="stdin-", suffix=".txt") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        if not file.tell():
            raise InputError("nothing comes from the standard input; what a sweep reads must be in a file")
        yield file.name


def content(files: Sequence[Path], cache: Path) -> list[str]:
    """A digest of the bytes of each file as they are on the disk and of how its suffix says to read them.

    Digests of files whose paths, inodes, sizes and times of change are as they were are in `cache`, and no byte is
    read. One of the times is ctime, which no program sets back.
    """
    status = [file.stat() for file in files]
    seen = [
        [str(file.absolute()), each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns]
        for file, each in zip(files, status, strict=True)
    ]
    known = cache / "digests" / f"{digest(seen)}.json"
    if known.is_file() and (text := known.read_text()).count('"') == 2 * len(files):
        return json.loads(text)
    digests = []
    with _bar(files, "reading") as bar:
        for file in files:
            state = blake2b(_kind(file).encode(), digest_size=16)
            with named_errors((OSError,), f"{file} cannot be read"), open(file, "rb") as opened:
                while part := opened.read(BLOCK):
                    state.update(part)
                    bar.update(len(part))
            digests.append(state.hexdigest())
    if max(max(each.st_mtime, each.st_ctime) for each in status) < time() - _SETTLED:
        with suppress(OSError), replacing(known) as temporary:
            temporary.write_text(json.dumps(digests))
    return digests


def _cut(data: bytes) -> int:
    """Where the last line ends; in a line without end where the last word begins, from the space before it on."""
    if end := data.rfind(b"\n") + 1:
        return end
    space = max(data.rfind(b" "), data.rfind(b"\t"))
    if space > 0:
        return space
    if len(data) < _MAX_WORD:
        return 0
    last = range(len(data) - 1, len(data) - 5, -1)  # bytes, one of which begins a character
    return next((i for i in last if data[i] & 0xC0 != 0x80), last[0])  # something is left: a later block ends the line


def _bar(files: Sequence[Path], desc: str) -> tqdm:
    total = sum(file.stat().st_size for file in files)
    return tqdm(total=total, desc=desc, unit="B", unit_scale=True, delay=1, leave=False)
