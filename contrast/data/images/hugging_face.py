"""Data sets of Hugging Face's library `datasets`: of its Hub, or a local folder of parquet files."""

import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from typing_extensions import Unpack

from contrast.data.images.folder import Options, Reading, refuse_or_skip
from contrast.data.images.image_set import UNLABELLED, ImageFiles, Splits
from contrast.data.images.subset import check_test_fraction, hold_out_test
from contrast.data.text.tokenizer import Tokenizer, tokenizer_for
from contrast.errors import InputError, first_few, named_errors, need
from contrast.network import look_for_the_hub

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TableImages(ImageFiles):
    """Images in a table of `datasets`, which maps it from disk, so that memory does not grow with the number of rows.

    `names` are the numbers of the rows in the table.
    """

    table: Any = None  # datasets.Dataset
    column: str = "image"
    unit: ClassVar[str] = "rows"

    def file(self, row: int) -> Path | io.BytesIO:
        cell = self.table[int(self.names[row])][self.column]
        return io.BytesIO(cell["bytes"]) if cell and cell["bytes"] else Path((cell or {}).get("path") or "")

    def title(self, row: int) -> str:
        return f"row {self.names[row]} of {self.root}"

    def stamp(self) -> list[object]:
        return [str(self.root), list(self.names)]  # the library gives every version of a table its own file


def hugging_face(
    name: str,
    config: str | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
    every_split: bool = False,
    tokenizer: Tokenizer | str | None = None,
    min_count: int = 1,
    max_words: int | None = None,
    length: int = 32,
    **options: Unpack[Options],
) -> Splits:
    """The images of `datasets.load_dataset(name, config)`: a name on the Hub, or a local folder of parquet files.

    test_split     None: test, or else validation, or else `test_fraction` of each class of the training images
    image_column   None: the first column of images; label_column: of classes, numbers or texts; None: label or the
                   first column of classes. A data set without one is unlabelled
    caption_column of texts, or of lists of texts: an image then has a row for each; None: no captions are read
    tokenizer, min_count, max_words, length  as in `captions`
    every_split, options  as in `folder`. A split over `memory_limit_gb` stays on disk and is decoded batch by batch

    Raises InputError without the library, for a data set that cannot be had, for splits or columns that it lacks, and
    for rows without a caption, which on_error="skip" leaves out.
    """
    need("datasets", "datasets", "data=hf")
    import datasets

    reading = Reading(**options)
    check_test_fraction(test_fraction)
    local = Path(name).expanduser()
    if not local.exists():
        look_for_the_hub()
    # the network, the file system and the library each raise errors of their own
    with named_errors((Exception,), f"the data set {name} cannot be had"):
        loaded = datasets.load_dataset(str(local) if local.exists() else name, config)
    test_name = test_split or next((each for each in ("test", "validation", "valid", "val") if each in loaded), None)
    for split in (train_split, test_name):
        if split is not None and split not in loaded:
            raise InputError(f"{name} has no split {split}; its splits are {', '.join(loaded)}")
    features = loaded[train_split].features
    images = image_column or _first(features, datasets.Image) or "image"
    labels = label_column or ("label" if "label" in features else _first(features, datasets.ClassLabel))
    for column in (images, labels, caption_column):
        if column is not None and column not in features:
            raise InputError(f"{name} has no column {column}; its columns are {', '.join(features)}")

    values = [] if labels is None else loaded[train_split][labels]
    known = getattr(features.get(labels), "names", None)
    classes = tuple(known or (str(value) for value in sorted({value for value in values if value is not None})))
    number: dict[object, int] = {value: i for i, value in enumerate(range(len(classes)) if known else classes)}

    def listing(split: str) -> TableImages:
        table = loaded[split].cast_column(images, datasets.Image(decode=False))
        cells = [] if labels is None else table[labels]
        rows = [number.get(cell if known else str(cell), UNLABELLED) for cell in cells] or [UNLABELLED] * len(table)
        files = [file["filename"] for file in table.cache_files]
        root = Path(files[0] if files else name) / images  # two columns of a table are two sets of images
        numbers = list(map(str, range(len(table))))
        return TableImages(root, numbers, torch.tensor(rows), classes, table=table, column=images)

    train, test = listing(train_split), None if test_name is None else listing(test_name)
    if test is None and test_fraction > 0:
        fit, held = hold_out_test(train.labels, test_fraction, seed)
        if len(held):
            train, test, test_name = train.select(fit), train.select(held), f"{test_fraction:g} of each class"
    unused = [split for split in loaded if split not in (train_split, test_name)]
    log.info(
        "data: %s; %d images%s to train on; %s; columns %s%s",
        name, len(train), f" of {len(classes)} classes" if classes else ", unlabelled",
        f"{len(test)} to test on ({test_name})" if test is not None else "no test set",
        " and ".join(column for column in (images, labels, caption_column) if column),
        f"; {'further' if every_split else 'passed over'} splits: {', '.join(unused)}" if unused else "",
    )  # fmt: skip
    others = {split: reading.load(listing(split)) for split in unused} if every_split else {}
    words = None
    if caption_column is not None:
        train, texts = _captioned(train, caption_column, reading.on_error)
        words = tokenizer_for(texts, tokenizer, min_count, max_words)
        train = replace(train, text=words.encode(texts, length))
        if test is not None:
            test, texts = _captioned(test, caption_column, reading.on_error)
            test = replace(test, text=words.encode(texts, length))
    tested = None if test is None else reading.load(test)
    return Splits(Path(name).name, reading.load(train), tested, tokenizer=words, others=others)


def _captioned(images: TableImages, column: str, on_error: str) -> tuple[TableImages, list[str]]:
    """A row for each caption of each image, and the captions."""
    cells, rows, texts, blank = list(images.table[column]), list[int](), list[str](), list[str]()
    for row, number in enumerate(images.names):
        cell = cells[int(number)]
        found = [text for text in ([cell] if isinstance(cell, str) else cell or []) if text and not text.isspace()]
        rows += [row] * len(found)
        texts += found
        blank += [] if found else [number]
    if blank:
        refuse_or_skip(f"{len(blank)} of {len(images)} rows have no caption in {column}: {first_few(blank)}", on_error)
    return images.select(torch.tensor(rows, dtype=torch.int64)), texts


def _first(features: Mapping[str, object], kind: type) -> str | None:
    return next((str(column) for column, feature in features.items() if isinstance(feature, kind)), None)
