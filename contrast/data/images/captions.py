"""Images with captions from a table on disk, a row for each pair of an image and a caption.

Rows are counted from 1, below the header.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NamedTuple

import torch
from typing_extensions import Unpack

from contrast.data.images.folder import Options, Reading, refuse_or_skip
from contrast.data.images.image_set import UNLABELLED, ImageFiles, Images, Splits
from contrast.data.images.subset import check_test_fraction, hold_out
from contrast.data.images.table import column_names, pick, read_table
from contrast.data.text.tokenizer import Tokenizer, tokenizer_for
from contrast.errors import InputError, first_few

log = logging.getLogger(__name__)

IMAGES = ("path", "image", "image_name", "filename", "file_name")
CAPTIONS = ("caption", "comment", "text")


class _Row(NamedTuple):
    """A row of a table that has an image and a caption."""

    name: str  # path of the image relative to the root
    caption: str
    label: str  # "" if it has none
    image: str  # path without links: rows of one image have the same


def captions(
    file: str | Path,
    root: str | Path | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    label_column: str | None = None,
    test_file: str | Path | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
    tokenizer: Tokenizer | str | None = None,
    min_count: int = 1,
    max_words: int | None = None,
    length: int = 32,
    **options: Unpack[Options],
) -> Splits:
    """The images and captions of `file`: .csv, .tsv, .txt or .parquet, with names of columns in the first row.

    An image with several captions has a row for each, in the table and in the data set.

    root             what the paths of images are relative to; None: the folder of `file`, or the first folder in it
                     that has the first image (Flickr8k has captions.txt beside Images/)
    image_column, caption_column  None: path, image, image_name, filename or file_name; caption, comment or text
    label_column     of class names, empty for an unlabelled row; without such a column every label is -1
    test_file        a second table, for `test`, which may share no image with the first; None: `test_fraction` of
                     the images of `file`, at least one, drawn by `seed`, with all of their rows. 0: no test set
    tokenizer        a Tokenizer; the name of one of transformers, or open_clip:NAME; or None: the words of the
                     training captions that occur `min_count` times, at most `max_words` of them (WordTokenizer.fit)
    length           tokens that are kept of a caption
    on_error         "raise" names rows without a caption or whose image is missing or cannot be read; "skip" leaves
                     them out and counts them
    memory_limit_gb  of the decoded pixels of all rows of a split; a larger one is decoded batch by batch (ImageFiles)
    image_size, channels, cache as in `folder`

    Raises InputError for a table that cannot be read or lacks a column, the rows above, images that are in both
    tables, test classes without a training row, and values out of range.
    """
    reading, file = Reading(**options), Path(file).expanduser()
    check_test_fraction(test_fraction)
    bases: dict[Path, Path] = {}

    def read(path: Path) -> list[_Row]:
        header = column_names(path, "captions")
        columns = [image_column or pick(header, IMAGES), caption_column or pick(header, CAPTIONS), label_column]
        values = read_table(path, [name for name in columns if name is not None], "captions")
        bases[path] = _base(path, values[0][0]) if root is None else Path(root).expanduser()
        return _complete(values, path, bases[path], reading.on_error)

    train, test, test_path = read(file), None, file
    classes = tuple(sorted({row.label for row in train if row.label}))
    if test_file is not None:
        test_path = Path(test_file).expanduser()
        test = read(test_path)
        if both := sorted({row.image for row in train} & {row.image for row in test}):
            raise InputError(f"{len(both)} images are both in {file} and in {test_path}: {first_few(both)}")
        if unknown := sorted({row.label for row in test if row.label} - set(classes)):
            raise InputError(f"{len(unknown)} classes of {test_path} are not in {file}: {first_few(unknown)}")
    elif test_fraction > 0:
        train, test = _split(train, test_fraction, seed, file)
    words = tokenizer_for([row.caption for row in train], tokenizer, min_count, max_words)
    number = {name: i for i, name in enumerate(classes)}
    held = "" if test is None or test_file is not None else ", held out of them"
    to_test = "no test set" if test is None else f"{_counted(test)} to test on{held}"
    log.info("data: %s, images in %s; %s to train on; %s", file, bases[file], _counted(train), to_test)

    def images(rows: list[_Row], path: Path) -> Images | ImageFiles:
        first: dict[str, str] = {}  # an image under several names is read under the first of them
        names = [first.setdefault(row.image, row.name) for row in rows]
        labels = torch.tensor([number.get(row.label, UNLABELLED) for row in rows])
        text = words.encode([row.caption for row in rows], length)
        return reading.load(ImageFiles(bases[path], names, labels, classes, text=text))

    tested = None if test is None else images(test, test_path)
    return Splits(file.stem, images(train, file), tested, tokenizer=words)


def _counted(rows: list[_Row]) -> str:
    return f"{len({row.image for row in rows}):,} images with {len(rows):,} captions"


def _base(file: Path, name: str) -> Path:
    """The folder that has the first image: that of the table, or else one in it."""
    folders = [file.parent, *sorted(each for each in file.parent.iterdir() if each.is_dir())]
    return next((each for each in folders if name and (each / name).is_file()), file.parent)


def _complete(values: list[list[str]], file: Path, root: Path, on_error: str) -> list[_Row]:
    """The rows that have a caption and an image; InputError names the others, or a warning if they may be skipped."""
    names, captions = values[:2]
    labels = values[2] if len(values) > 2 else [""] * len(names)
    images = {name: os.path.realpath(root / name) for name in set(names) if name and (root / name).is_file()}
    blank = [i for i, caption in enumerate(captions) if not caption]
    missing = [i for i, name in enumerate(names) if name not in images]
    for places, what in ((blank, "no caption"), (missing, f"an image that is not in {root}")):
        if places:
            some = first_few([f"row {i + 1} ({names[i]})" for i in places])
            refuse_or_skip(f"{len(places)} of {len(names)} rows of {file} have {what}: {some}", on_error)
    rows = zip(names, captions, labels, strict=True)
    kept = [_Row(name, caption, label, images[name]) for name, caption, label in rows if caption and name in images]
    if not kept:
        raise InputError(f"none of the {len(names)} rows of {file} has a caption and an image")
    return kept


def _split(rows: list[_Row], fraction: float, seed: int, file: Path) -> tuple[list[_Row], list[_Row]]:
    """The rows to train on and those to test on: all rows of `fraction` of the images, drawn by the seed."""
    images = list(dict.fromkeys(row.image for row in rows))
    if len(images) < 2:
        raise InputError(f"{file} has 1 image: none can be held out beside one to train on; give test_fraction=0")
    held_out = {images[i] for i in hold_out(torch.zeros(len(images)), fraction, seed)[1].tolist()}
    return [row for row in rows if row.image not in held_out], [row for row in rows if row.image in held_out]
