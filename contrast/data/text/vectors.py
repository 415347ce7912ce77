"""Word vectors in files: the text and the binary format of word2vec, which most tools read, and safetensors.

V words, D dimensions.

.txt, .vec     "V D", then a line for each word: the word and D decimal numbers, spaces between them
.bin           "V D" and a line feed, then for each word: the word, a space, D little-endian float32, a line feed
.floret        the table of n-grams that are hashed as in floret, without words: it is written for spaCy, not read
.safetensors   `vectors`, float32 [V, D], and `words`, uint8: the words in UTF-8, a line feed after each. A tensor, not
               metadata, whose size the format limits

Each may be compressed: .txt.gz, .vec.gz, .bin.gz, .safetensors.gz.
"""

import gzip
import mmap
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from io import TextIOWrapper
from itertools import takewhile
from pathlib import Path
from typing import IO, Literal, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor
from tqdm import tqdm

from contrast.atomic import FULL, replacing
from contrast.data.store import save_tensors
from contrast.errors import InputError, named_errors, one_line

TEXT, BINARY, SAFE, PACKED, FLORET = (".txt", ".vec"), (".bin",), (".safetensors",), ".gz", ".floret"
FLORET_SEED = 2166136261  # of floret's hash
_FASTTEXT = b"\xba\x16\x4f\x2f"  # a model of fastText begins so
_LONGEST = 1 << 24  # characters of a line of text
_MOST_PACKED = 100  # times as many bytes as a compressed file has; vectors have hardly more than it


def save_vectors(
    path: str | Path, words: Sequence[str], vectors: Tensor, more: Mapping[str, Tensor] | None = None
) -> None:
    """Write the vectors [V, D] of `words` [V], in the format of the suffix; the file is whole or absent.

    more  further tensors, which only safetensors can hold

    Numbers are saved as float32, exactly: in text with 9 digits, enough to restore every float32.

    Raises InputError for another suffix, .floret without such n-grams, words and vectors that do not fit, no words, a
    word that occurs twice, is empty or has white space in it (all three formats end words at white space), and a file
    that cannot be written; OSError if the disk is full.
    """
    path = Path(path).expanduser()
    suffix, sizes = file_format(path), (more or {}).get("subwords", ())
    check_floret(path, has_hashes=len(sizes) == 4)
    _check(words, vectors, "what is to be saved")
    wrong = [word for word in words if word.split() != [word]]
    if wrong:
        raise InputError(f"{len(wrong)} of {len(words)} words are empty or have a space in them, such as '{wrong[0]}'")
    if len(set(words)) < len(words):
        word, count = Counter(words).most_common(1)[0]
        raise InputError(f"{len(words)} words are to be saved, but '{word}' occurs {count} times")
    values = vectors.detach().cpu().float().contiguous()
    try:
        _write_file(path, suffix, words, values, more or {})
    except OSError as error:
        if error.errno in FULL:  # the command turns it into the line for a full disk
            raise
        raise InputError(f"{path} cannot be written: {one_line(error)}") from error


def _write_file(path: Path, suffix: str, words: Sequence[str], values: Tensor, more: Mapping[str, Tensor]) -> None:
    with replacing(path) as temporary:
        if suffix in SAFE:
            joined = bytearray("".join(f"{word}\n" for word in words).encode())
            tensors = {"vectors": values, "words": torch.frombuffer(joined, dtype=torch.uint8)}
            save_tensors({**tensors, **more}, temporary)
            if path.suffix == PACKED:
                temporary.write_bytes(gzip.compress(temporary.read_bytes()))
        elif suffix == FLORET:
            _write_floret(temporary, more)
        elif suffix in BINARY:
            _write(temporary, words, values, lambda row: row.astype("<f4").tobytes())
        else:
            line = " ".join(["%.9g"] * values.shape[1])
            _write(temporary, words, values, lambda row: (line % tuple(row.tolist())).encode())


def load_vectors(path: str | Path) -> tuple[tuple[str, ...], Tensor]:
    """The words [V] and vectors [V, D], float32, of a file in one of the three formats, in its order.

    Text may lack the line "V D", as GloVe's does, and then a word may have spaces in it. Of a word that occurs twice
    the first vector is taken, with a warning; bytes that are not UTF-8 are read as U+FFFD.

    Raises InputError for a file that does not exist, has another suffix, is not in the format of its suffix, or has a
    number that is not finite.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"{path} is no file" if path.exists() else f"{path} does not exist")
    suffix = file_format(path)
    if suffix == FLORET:
        raise InputError(f"{path} has vectors of n-grams and no words: take the .safetensors of the same run")
    kinds = (SafetensorError, OSError, EOFError, zlib.error, ValueError, TypeError, RuntimeError)
    with named_errors(kinds, f"{path} holds no word vectors"):
        if suffix in SAFE:
            tensors = tensors_of(path)
            if not {"vectors", "words"} <= set(tensors):
                raise ValueError(f"it has no `vectors` and `words`, but {len(tensors)} other tensors")
            words = tensors["words"].numpy().tobytes().decode().split("\n")[:-1]
            vectors = tensors["vectors"].float()
        else:
            words, vectors = _read_binary(path) if suffix in BINARY else _read_text(path)
    _check(words, vectors, str(path))
    if not (finite := vectors.isfinite().all(dim=1)).all():
        row = int(finite.int().argmin())
        raise InputError(f"{path} has numbers that are not finite, such as in the vector of '{words[row]}'")
    first = {word: row for row, word in reversed(list(enumerate(words)))}
    if len(first) == len(words):
        return tuple(words), vectors
    warnings.warn(f"{len(words) - len(first)} words of {path} occur again: the first vector is taken", stacklevel=2)
    rows = sorted(first.values())
    return tuple(words[row] for row in rows), vectors[rows]


def tensors_of(path: Path, begin: str = "") -> dict[str, Tensor]:
    """The tensors in a .safetensors or .safetensors.gz whose names begin so."""
    if path.suffix == PACKED:
        return {name: tensor for name, tensor in load(bytes(_bytes(path))).items() if name.startswith(begin)}
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys()) if name.startswith(begin)}


def file_format(path: str | Path) -> str:
    """The suffix of a file of word vectors. Raises InputError for one that is none of the formats'."""
    path = Path(path)
    suffix = Path(path.stem).suffix if path.suffix == PACKED else path.suffix
    if suffix not in (*TEXT, *BINARY, *SAFE) and path.suffix != FLORET:
        known = ", ".join((*TEXT, *BINARY, *SAFE))
        raise InputError(
            f"word vectors are files of {known}, or one of these and {PACKED}, or {FLORET}, not '{path.name}'"
        )
    return suffix


def _open(path: Path, mode: Literal["rb", "wb"]) -> IO[bytes]:
    """A file, decompressed or compressed as its suffix says; a file that is being written has it at the end, too."""
    return cast(IO[bytes], gzip.open(path, mode)) if path.suffix == PACKED else open(path, mode)


def _bytes(path: Path) -> bytes | mmap.mmap:
    """All of a file. ValueError for one that would grow out of proportion when it is decompressed."""
    with _open(path, "rb") as file:
        if path.suffix != PACKED:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        most = _MOST_PACKED * path.stat().st_size
        if len(content := file.read(most + 1)) > most:
            raise ValueError(f"it is more than {_MOST_PACKED} times as large when it is decompressed")
        return content


def _check(words: Sequence[str], vectors: Tensor, what: str) -> None:
    if vectors.ndim != 2 or len(words) != len(vectors) or vectors.numel() == 0:
        raise InputError(f"{what} holds {len(words)} words and vectors {list(vectors.shape)}, not V words and [V, D]")


def _write(path: Path, words: Sequence[str], values: Tensor, encode: Callable[[np.ndarray], bytes]) -> None:
    """The formats of word2vec, which differ in how they `encode` a vector [D]."""
    bar = tqdm(words, desc="saving vectors", unit="word", unit_scale=True, delay=1, leave=False)
    with _open(path, "wb") as file:
        file.write(f"{len(words)} {values.shape[1]}\n".encode())
        for word, row in zip(bar, values.numpy(), strict=True):
            file.write(f"{word} ".encode() + encode(row) + b"\n")


def _write_floret(path: Path, more: Mapping[str, Tensor]) -> None:
    """A header, then a line for each bucket, as `floret.save_floret_vectors` writes them; unused buckets are 0."""
    minn, maxn, buckets, hashes = more["subwords"].tolist()
    vectors = more["subword_vectors"].float()
    row_of = {bucket: row for row, bucket in enumerate(more["subword_buckets"].tolist())}
    line, nothing = " ".join(["%.9g"] * vectors.shape[1]), [0.0] * vectors.shape[1]
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{buckets} {vectors.shape[1]} {minn} {maxn} {hashes} {FLORET_SEED} < >\n")
        for bucket in range(buckets):
            row = row_of.get(bucket)
            file.write(f"{bucket} {line % tuple(nothing if row is None else vectors[row].tolist())}\n")


def check_floret(path: str | Path, has_hashes: bool) -> None:
    """InputError for a .floret file of vectors without n-grams that are hashed as in floret."""
    if Path(path).suffix == FLORET and not has_hashes:
        raise InputError(f"{path} has the n-grams of encoder=floret, and these vectors have no such n-grams")


def _check_length(path: Path, size: int, width: int, shortest: int) -> None:
    """ValueError for a header that claims more than its file can hold, before memory is taken for it."""
    most = path.stat().st_size * (_MOST_PACKED if path.suffix == PACKED else 1)
    if min(size, width) < 0 or size * shortest > most:
        raise ValueError(f"it is too short for {size} words of {width} numbers")


def _read_text(path: Path) -> tuple[list[str], Tensor]:
    words, rows = [], []
    size, width = None, None  # unless the first line says them
    with _open(path, "rb") as binary, TextIOWrapper(binary, encoding="utf-8", errors="replace", newline="\n") as file:
        most = _MOST_PACKED * path.stat().st_size  # characters
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST), ""), start=1):
            most -= len(line)
            if len(line) == _LONGEST or (path.suffix == PACKED and most < 0):
                raise ValueError(f"line {number} is too long, or the file grows too much when it is decompressed")
            word, *numbers = line.rstrip().split(" ")
            if number == 1 and len(numbers) > 1:  # without the line "V D": the numbers at its end are D
                width = sum(1 for _ in takewhile(_is_number, reversed(numbers)))
                if not width:
                    raise ValueError("its first line does not end with a number")
            if size is None and width is not None and len(numbers) > width:  # GloVe has words such as ". . ."
                word, numbers = " ".join([word, *numbers[:-width]]), numbers[-width:]
            if number == 1 and len(numbers) == 1:
                size, width = int(word), int(numbers[0])
                _check_length(path, size, width, 1 + 2 * width)  # a letter, and a space and a digit of each number
                continue
            width = len(numbers) if width is None else width
            if len(numbers) != width:
                raise ValueError(f"line {number} has {len(numbers)} numbers, not {width}")
            words.append(word)
            rows.append(np.array(numbers, dtype=np.float32))
    if not rows or size not in (None, len(rows)):
        raise ValueError(f"it has {len(rows)} words" + (f", not {size}" if rows else ""))
    return words, torch.from_numpy(np.stack(rows))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_binary(path: Path) -> tuple[list[str], Tensor]:
    content = _bytes(path)
    if content[:4] == _FASTTEXT:
        raise InputError(
            f"{path} is a model of fastText, not a file of vectors: take the .vec file beside it, or save its "
            "vectors with gensim.models.fasttext.load_facebook_vectors"
        )
    at = content.find(b"\n") + 1
    size, width = (int(field) for field in content[:at].split())
    _check_length(path, size, width, 1 + 4 * width)
    words, values = [], np.empty((size, width), dtype="<f4")
    for row in range(size):
        space = content.find(b" ", at)
        end = space + 1 + 4 * width
        if space < 0 or end > len(content):
            raise ValueError(f"it ends after {row} of {size} words")
        words.append(content[at:space].lstrip(b"\n").decode(errors="replace"))  # some tools write no line feed
        values[row] = np.frombuffer(content[space + 1 : end], "<f4")
        at = end
    if content[at:].strip(b"\n"):
        raise ValueError(f"it goes on after its {size} words: it is of another format, or damaged")
    return words, torch.from_numpy(values.astype(np.float32, copy=False))
