"""Image files as a data set: in memory, through the cache on disk, or decoded batch by batch."""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm.contrib.concurrent import thread_map
from typing_extensions import Unpack

from contrast.data.images.decode import UnreadableImage, check_on_error, highest
from contrast.data.images.image_set import ImageFiles, Images, Splits
from contrast.data.images.listing import Passed, Split, listing, rows_below
from contrast.data.images.names import Names
from contrast.data.store import cache_folder, cached, digest, from_texts, to_texts
from contrast.errors import InputError, first_few

log = logging.getLogger(__name__)

_FORMAT = 3  # part of every key: to change when the same files are to give other pixels
_LOOKED_AT, _FULL = 16, 65535  # images whose depth is looked at; the highest value of 16 bits
_BLOCK = 64  # images that a thread takes at a time
_T = TypeVar("_T")


class Options(TypedDict, total=False):
    """The arguments of `Reading`."""

    image_size: int | None
    channels: int
    range: Sequence[float] | None
    on_error: str
    memory_limit_gb: float
    cache: str | Path | None
    fast_jpeg: bool


@dataclass(frozen=True)
class Reading:
    """How image files are read; the fields are explained at `folder`. InputError for values out of range."""

    image_size: int | None = None
    channels: int = 3
    range: Sequence[float] | None = None
    on_error: str = "raise"
    memory_limit_gb: float = 4.0
    cache: str | Path | None = None
    fast_jpeg: bool = False

    def __post_init__(self) -> None:
        check_on_error(self.on_error)
        if not self.channels or self.channels < 1:
            raise InputError(f"images have at least 1 channel, not {self.channels}")
        if self.range is not None and (len(self.range) != 2 or not self.range[0] < self.range[1]):
            raise InputError(f"a range is two numbers, that of black and that of white, not {list(self.range)}")
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"image_size must be at least 1 pixel, not {self.image_size}")

    def load(self, files: ImageFiles) -> Images | ImageFiles:
        """The images of the files: decoded, or from the cache; or as files, if they take more than the limit.

        Where the files are, their labels and captions count; the other fields follow from this object's.

        With on_error="skip", rows whose file cannot be read are left out, and a warning counts the files. To find them
        above the limit, every file is decoded once; the cache keeps the result until a file changes. With "raise" and
        `image_size`, no file above the limit is touched before it is needed.
        """
        files = replace(
            files,
            size=self.image_size or 0,
            channels=self.channels,
            range=self.range,
            on_error=self.on_error,
            fast_jpeg=self.fast_jpeg,
        )
        cache, where = cache_folder(self.cache), files.where
        self._check_depth(files)
        size = [self.image_size or 0] * 2  # height and width
        if self.image_size is None:
            make = lambda: {"size": torch.tensor(_first_size(files))}  # noqa: E731
            size = cached(cache, f"sizes/{_digest(files, files.stamp())}", make)["size"].tolist()
        gigabytes = len(files) * self.channels * size[0] * size[1] / 1e9
        in_memory = gigabytes <= self.memory_limit_gb
        if not in_memory and self.image_size is None:
            raise InputError(
                f"{len(files)} images of {size[1]} x {size[0]} in {where} take {gigabytes:.3g} GB, over "
                f"memory_limit_gb={self.memory_limit_gb:g}: give image_size, so that they can be read while training"
            )
        if not in_memory and self.on_error == "raise":
            return files
        distinct, place = np.unique(files.first_rows(), return_inverse=True)  # an image with captions may occur again
        once = files.select(torch.from_numpy(distinct))
        known = _digest(once, once.stamp())
        if in_memory:
            entry = cached(cache, f"keys/{known}", lambda: {"key": from_texts([_content(once)])})
            (key,) = to_texts(entry["key"])
            entry = cached(cache, f"images/{key}", lambda: _decoded(once, size))
        else:
            entry = cached(cache, f"unreadable/{known}", lambda: _decoded(once, size, keep=False))
        lost = entry["unreadable"].tolist()
        if lost:
            names = first_few([once.names[row] for row in lost])
            message = f"{len(lost)} of {len(once)} {files.unit} in {where} cannot be read: {names}"
            refuse_or_skip(f"{message}; {_reason(once, lost[0])}", self.on_error)
        readable = np.isin(np.arange(len(once)), lost, invert=True)
        files = files.select(torch.from_numpy(readable[place].nonzero()[0]))
        if not in_memory:
            return files
        pixels = entry["pixels"]
        if len(files) > len(pixels):  # an image has several captions; otherwise the pixels stay mapped from the cache
            pixels = pixels[torch.from_numpy((readable.cumsum() - 1)[place[readable[place]]])]
        assert isinstance(files.names, Names)
        return Images(pixels, files.labels, files.classes, files.text, files.names)

    def _check_depth(self, files: ImageFiles) -> None:
        """A warning where 16-bit images use so small a part of their range that they would be nearly black."""
        some = range(0, len(files), -(-len(files) // _LOOKED_AT)) if self.range is None and len(files) else ()
        values = list[int]()
        for row in some:
            with suppress(UnreadableImage):  # `_decoded` raises the error
                values += [value] if (value := highest(files.file(row))) is not None else []
        if values and max(values) < _FULL / 8:
            log.warning(
                "the highest value in %d 16-bit images of %s is %d of %d, so they are nearly black: "
                "data.range=[0,%d] makes it white", len(values), files.where, max(values), _FULL, max(values),
            )  # fmt: skip


def _decoded(files: ImageFiles, size: list[int], keep: bool = True) -> dict[str, Tensor]:
    """`pixels` of the readable images, [M, C, *size] uint8, if they are to be kept; rows of the `unreadable` files."""
    pixels = torch.empty(len(files) if keep else 0, files.channels, *size, dtype=torch.uint8)
    view = pixels.numpy()

    def work(row: int) -> bool:
        try:
            image = files.pixels(row)
        except UnreadableImage as error:
            if files.on_error == "raise":
                raise UnreadableImage(f"{error}; data.on_error=skip leaves such {files.unit} out") from error
            return False
        if list(image.shape[1:]) != size:
            raise InputError(
                f"images differ in size: {files.title(0)} is {size[1]} x {size[0]}, {files.title(row)} is "
                f"{image.shape[2]} x {image.shape[1]}; give data.image_size"
            )
        if keep:
            view[row] = image
        return True

    readable = torch.tensor(in_threads(work, len(files), f"decoding {files.where}"))
    if not readable.any():
        raise UnreadableImage(f"none of the {len(files)} images in {files.where} can be read: {_reason(files, 0)}")
    if keep and not readable.all():
        pixels = pixels[readable]
    return {"pixels": pixels, "unreadable": (~readable).nonzero().flatten()}


def _reason(files: ImageFiles, row: int) -> str:
    """Why the file at `row` cannot be read."""
    try:
        files.pixels(row)
    except UnreadableImage as error:
        return str(error)
    return "now it can be read"


def _first_size(files: ImageFiles) -> tuple[int, ...]:
    """Height and width of the first image that can be read."""
    for row in range(len(files)):
        with suppress(UnreadableImage):
            return files.pixels(row).shape[1:]
    return 0, 0  # `_decoded` raises the error


def _content(files: ImageFiles) -> str:
    """A digest of the names and bytes of all files, wherever their folder is."""

    def work(row: int) -> str:
        with suppress(OSError, UnreadableImage):
            file = files.file(row)
            if isinstance(file, BytesIO):
                return digest(file.getvalue())
            if file.is_file():
                return digest(file.read_bytes())
        return ""

    return _digest(files, list(files.names), in_threads(work, len(files), f"reading {files.where}"))


def _digest(files: ImageFiles, *parts: object) -> str:
    return digest(_FORMAT, *files.decoding, *parts)


def folder(
    root: str | Path | Sequence[str | Path],
    name: str | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
    labels: bool = True,
    every_split: bool = False,
    **options: Unpack[Options],
) -> Splits:
    """The images below the folder `root`, of a table .csv, .tsv, .txt or .parquet, or of a list of these.

    `contrast.data.images.listing` and docs/data.md describe the layouts. A line at the start of the run says how the
    images are used and which files were ignored.

    test_fraction    of each class, or of images without labels, is held out to test on where there is no test split,
                     drawn by `seed`
    labels           False: all images are unlabelled, whatever their folders are called
    every_split      True: the images that are otherwise passed over, such as a validation split beside a test split,
                     are in `Splits.others`
    image_size       pixels of either side; needed where images differ in size (shorter side resized, centre kept);
                     None, the default: as they are
    channels         3, the default: RGB; 1: greyscale; any other number: that of the files
    range            values of black and white in files of more than 8 bits, by default 0 and 65535 for 16 bits
    on_error         "raise", the default, names what cannot be read; "skip" leaves it out and counts it
    memory_limit_gb  of the decoded pixels of a split, by default 4; a larger one is decoded batch by batch
                     (ImageFiles). With "skip" each of its files is then decoded once at the first start, to find those
                     that cannot be read
    cache            folder of decoded images, by default $CONTRAST_CACHE or ~/.cache/contrast
    fast_jpeg        True: decode large JPEGs at a reduced size (`decode`), False by default

    Raises InputError for a missing or empty folder, splits without a common class, sizes that differ without
    image_size, a file that cannot be read, and values out of range.
    """
    reading = Reading(**options)
    roots = [Path(each).expanduser() for each in ([root] if isinstance(root, str | Path) else root)]
    listed = listing(roots, labels, test_fraction, seed, reading.on_error, every_split)
    log.info("data: %s", listed)
    bases = [each if each.is_dir() else each.parent for each in roots]
    base = bases[0] if len(bases) == 1 else Path(os.path.commonpath([each.absolute() for each in bases]))
    top = os.path.join(os.path.abspath(base), "")

    def load(split: Split) -> Images | ImageFiles:
        names = Names(path.removeprefix(top) for path in split.paths)
        files = ImageFiles(base, names, torch.tensor(split.labels, dtype=torch.int64), listed.classes)
        return reading.load(files) if split.paths else files

    title = name or "+".join(each.resolve().stem for each in roots)
    others = {split: load(members) for split, members in listed.others.items()}
    return Splits(title, load(listed.train), None if listed.test is None else load(listed.test), others=others)


def files_below(root: Path) -> ImageFiles:
    """Every image below `root` in the order of their names, unlabelled; each is decoded when a batch needs it."""
    top = os.path.join(os.path.abspath(root), "")
    names = sorted(row.path.removeprefix(top) for row in rows_below(root, Passed()))
    if not names:
        raise InputError(f"no images in {root}")
    return ImageFiles(root, names, torch.full((len(names),), -1), ())


def refuse_or_skip(problem: str, on_error: str) -> None:
    """Raises an UnreadableImage if on_error is "raise", and logs that rows with the problem are skipped if not."""
    if on_error == "raise":
        raise UnreadableImage(f"{problem}; data.on_error=skip leaves them out")
    log.warning("skipped: %s", problem)


def in_threads(work: Callable[[int], _T], count: int, desc: str, block: int = _BLOCK, unit: str = "image") -> list[_T]:
    """work(0), ..., work(count - 1) under a progress bar; Pillow, hashing and reading let other threads run.

    A thread takes `block` numbers at a time.
    """

    def some(start: int) -> list[_T]:
        return [work(row) for row in range(start, min(start + block, count))]

    starts, bar = range(0, count, block), {"desc": desc, "unit": unit, "unit_scale": block, "delay": 1}
    return list(chain.from_iterable(thread_map(some, starts, max_workers=min(32, os.cpu_count() or 1), **bar)))
