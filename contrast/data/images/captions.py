"""Images with captions from a table on disk, a row for each pair of an image and a caption.

Rows are counted from 1, below the header.
"""

import csv
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from contrast.data.images.cache import Cache
from contrast.data.images.decode import names_few
from contrast.data.images.folder import Listing, check_options, check_sides, load
from contrast.data.images.image_set import UNLABELLED, ImageFiles, Images, Splits
from contrast.data.text.tokenizer import HFTokenizer, Tokenizer, WordTokenizer
from contrast.errors import InputError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class Rows(NamedTuple):
    """Rows of a table that have an image and a caption, in its order. P rows."""

    names: list[str]  # [P] paths of images relative to the root
    captions: list[str]  # [P]
    labels: list[str]  # [P], "" where there is none
    images: list[str]  # [P] paths without links: rows of one image have the same

    def at(self, places: Iterable[int]) -> "Rows":
        places = list(places)
        return Rows(*([column[place] for place in places] for column in self))


def captions(
    file: str | Path,
    root: str | Path | None = None,
    image_column: str = "path",
    caption_column: str = "caption",
    label_column: str | None = None,
    test_file: str | Path | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
    image_size: int | None = None,
    channels: int = 3,
    tokenizer: Tokenizer | str | None = None,
    min_count: int = 1,
    max_words: int | None = None,
    length: int = 32,
    on_error: str = "raise",
    memory_limit_gb: float = 4.0,
    cache: str | Path | None = None,
) -> Splits:
    """The images and captions of `file`: .csv, .tsv or .parquet, with names of columns in the first row.

    An image with several captions stands in several rows, and in as many of the data set.

    root             what the paths of images are relative to; None: the folder of `file`
    label_column     of class names, empty where there is none; without it every label is -1
    test_file        a second table, for `test`, which may share no image with the first; None: `test_fraction` of
                     the images of `file`, at least one, drawn by `seed`, with all of their rows. 0: no test set
    tokenizer        a Tokenizer; the name of one of transformers; or None: the words of the training captions that
                     occur `min_count` times, at most `max_words` of them (WordTokenizer.fit)
    length           tokens that are kept of a caption
    on_error         "raise" names rows without a caption or whose image is missing or cannot be read; "skip" leaves
                     them out and counts them
    memory_limit_gb  of the decoded pixels of all rows of a split; a larger one is decoded batch by batch (ImageFiles)
    image_size, channels, cache as in `folder`

    Raises InputError for a table that cannot be read or lacks a column, the rows above, images that stand in both
    tables, test classes without a training row, and values out of range.
    """
    check_options(image_size, channels, on_error)
    if not 0 <= test_fraction < 1:
        raise InputError(f"test_fraction must lie in [0, 1), not {test_fraction}")
    file = Path(file).expanduser()
    columns = [image_column, caption_column, *([] if label_column is None else [label_column])]

    def base(path: Path) -> Path:
        return path.parent if root is None else Path(root).expanduser()

    def read(path: Path) -> Rows:
        return complete(*read_table(path, columns), path, base(path), on_error)

    train, test = read(file), None
    classes = tuple(sorted({label for label in train.labels if label}))
    test_path = file if test_file is None else Path(test_file).expanduser()
    if test_file is not None:
        test = read(test_path)
        if both := sorted(set(train.images) & set(test.images)):
            raise InputError(f"{len(both)} images are both in {file} and in {test_path}: {names_few(both)}")
        if unknown := sorted({label for label in test.labels if label} - set(classes)):
            raise InputError(f"{len(unknown)} classes of {test_path} are not in {file}: {names_few(unknown)}")
    elif test_fraction > 0:
        held = held_out(train.images, test_fraction, seed, file)
        train, test = train.at(np.flatnonzero(~held)), train.at(np.flatnonzero(held))
    if isinstance(tokenizer, str):
        tokenizer = HFTokenizer(tokenizer)
    elif tokenizer is None:
        tokenizer = WordTokenizer.fit(train.captions, min_count, max_words)

    def images(rows: Rows, path: Path) -> Images | ImageFiles:
        of = image_numbers(rows.images)  # [P]
        names = [rows.names[place] for place in np.unique(of, return_index=True)[1]]  # of the distinct images
        # each its own class, so that the labels of those that can be decoded tell which they are
        listing = Listing(base(path), names, torch.arange(len(names)), tuple(names))
        found = load(listing, image_size, channels, on_error, memory_limit_gb, Cache(cache), rows=len(of))
        number = {name: i for i, name in enumerate(classes)}
        labels = torch.tensor([number.get(label, UNLABELLED) for label in rows.labels], dtype=torch.int64)
        return repeated(found, torch.from_numpy(of), labels, classes, tokenizer.encode(rows.captions, length))

    splits = Splits(
        file.stem, images(train, file), None if test is None else images(test, test_path), tokenizer=tokenizer
    )
    check_sides(splits, base(file))
    return splits


def read_table(file: Path, columns: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """The columns of a table with images, captions and labels ("" without a third); InputError as in `captions`.

    Fields of .csv and .tsv alike may be quoted by ", which is doubled within (RFC 4180), in UTF-8.
    """
    if not file.is_file():
        raise InputError(f"no such file of captions: {file}")
    if file.suffix.lower() == ".parquet":
        values = _parquet(file, columns)
    elif file.suffix.lower() in _DELIMITERS:
        values = _delimited(file, columns, _DELIMITERS[file.suffix.lower()])
    else:
        raise InputError(f"captions are read from .csv, .tsv and .parquet, not from {file.name}")
    if not values[0]:
        raise InputError(f"{file} has no rows")
    return values[0], values[1], values[2] if len(columns) > 2 else [""] * len(values[0])


def complete(names: list[str], captions: list[str], labels: list[str], file: Path, root: Path, on_error: str) -> Rows:
    """The rows that have a caption and an image; InputError names the others, or a warning if they may be skipped."""
    there = {name: bool(name) and (root / name).is_file() for name in set(names)}
    blank = [i for i, caption in enumerate(captions) if not caption]
    missing = [i for i, name in enumerate(names) if not there[name]]
    for places, what in ((blank, "no caption"), (missing, f"an image that is not in {root}")):
        if places:
            shown = names_few([f"row {i + 1} ({names[i]})" for i in places])
            told = f"{len(places)} of {len(names)} rows of {file} have {what}: {shown}"
            if on_error == "raise":
                raise InputError(f"{told}; data.on_error=skip goes on without them")
            warnings.warn(f"skipped: {told}", stacklevel=4)
    left_out = {*blank, *missing}
    if len(left_out) == len(names):
        raise InputError(f"none of the {len(names)} rows of {file} has a caption and an image")
    real = {name: os.path.realpath(root / name) for name, found in there.items() if found}
    rows = Rows(names, captions, labels, [real.get(name, "") for name in names])
    return rows.at(i for i in range(len(names)) if i not in left_out) if left_out else rows


def image_numbers(images: Sequence[str]) -> np.ndarray:
    """The number of each row's image, in the order in which they first occur, [P] int64."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(image, len(number)) for image in images], dtype=np.int64)


def held_out(images: Sequence[str], fraction: float, seed: int, file: Path) -> np.ndarray:
    """Which rows [P] are for the test: all rows of `fraction` of the images, a function of the seed and their order."""
    of = image_numbers(images)
    count = int(of.max()) + 1
    if count < 2:
        raise InputError(f"{file} has 1 image: none can be held out beside one to train on; give test_fraction=0")
    most = min(max(1, round(fraction * count)), count - 1)
    return np.isin(of, np.random.default_rng(seed).permutation(count)[:most])


def repeated(
    found: Images | ImageFiles, of: Tensor, labels: Tensor, classes: tuple[str, ...], text: Tensor
) -> Images | ImageFiles:
    """A data set of rows, `of` [P] the image of each; `found` holds the images once, their numbers as labels.

    Rows whose image is not in `found`, as it could not be decoded, are left out.
    """
    if isinstance(found, ImageFiles):
        return replace(found, names=found.names[of.numpy()], labels=labels, classes=classes, text=text)
    place = torch.full((int(of.max()) + 1,), -1)
    place[found.labels] = torch.arange(len(found))
    at = place[of]  # [P] rows of `found`
    kept = at >= 0
    once = int(kept.sum()) == len(found)  # and in order: no copy, so that the pixels stay mapped from the cache
    pixels = found.pixels if once else found.pixels[at[kept]]
    return Images(pixels, labels[kept], classes, text[kept])


def _delimited(file: Path, columns: Sequence[str], delimiter: str) -> list[list[str]]:
    values: list[list[str]] = [[] for _ in columns]
    reader = None
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            at = _places(file, header, columns)
            for number, fields in enumerate((fields for fields in reader if fields), start=1):
                if len(fields) != len(header):
                    raise InputError(f"row {number} of {file} has {len(fields)} fields, the header {len(header)}")
                for value, place in zip(values, at, strict=True):
                    value.append(fields[place].strip())
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        line = "" if reader is None else f" line {reader.line_num}"
        raise InputError(f"{file}{line} cannot be read: {' '.join(str(error).split())}") from error
    return values


def _parquet(file: Path, columns: Sequence[str]) -> list[list[str]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{file.name} needs pyarrow: pip install 'contrast[parquet]'") from error
    try:
        _places(file, parquet.read_schema(file).names, columns)
        table = parquet.read_table(file, columns=list(columns))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    values = []
    for name in columns:
        column = table.column(name).to_pylist()
        wrong = next((value for value in column if not isinstance(value, str | int | None)), None)
        if wrong is not None:
            raise InputError(f"the column '{name}' of {file} holds {type(wrong).__name__}, not texts")
        values.append(["" if value is None else str(value).strip() for value in column])
    return values


def _places(file: Path, header: Sequence[str], columns: Sequence[str]) -> list[int]:
    missing = [name for name in columns if name not in header]
    if missing:
        raise InputError(f"{file} has no column {', '.join(missing)}; its columns are {', '.join(header) or 'none'}")
    twice = [name for name in columns if list(header).count(name) > 1]
    if twice:
        raise InputError(f"{file} has more than one column {', '.join(twice)}")
    return [list(header).index(name) for name in columns]
