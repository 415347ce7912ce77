"""Image files as a data set: in memory, through the cache on disk, or decoded batch by batch; any folder of them."""

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm.contrib.concurrent import thread_map
from typing_extensions import Unpack

from contrast.data.images.decode import UnreadableImage, check_on_error, decode
from contrast.data.images.image_set import UNLABELLED, ImageFiles, Images, Splits
from contrast.data.store import cache_folder, cached, digest, from_texts, to_texts
from contrast.errors import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_FORMAT = 2  # part of every key: to change when the same files are to give other pixels
_BLOCK = 64  # files that a thread takes at a time
_T = TypeVar("_T")


class Options(TypedDict, total=False):
    """The arguments of `Reading`."""

    image_size: int | None
    channels: int
    on_error: str
    memory_limit_gb: float
    cache: str | Path | None


@dataclass(frozen=True)
class Reading:
    """How image files are read; the fields are explained at `folder`. InputError for values out of range."""

    image_size: int | None = None
    channels: int = 3
    on_error: str = "raise"
    memory_limit_gb: float = 4.0
    cache: str | Path | None = None

    def __post_init__(self) -> None:
        check_on_error(self.on_error)
        if self.channels not in (1, 3):
            raise InputError(f"images have 1 channel (greyscale) or 3 (RGB), not {self.channels}")
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"image_size must be at least 1 pixel, not {self.image_size}")

    def load(self, files: ImageFiles) -> Images | ImageFiles:
        """The images of the files: decoded, or from the cache; or as files, if they take more than the limit.

        Only the names, labels and captions of `files` count; the other fields follow from this object's.

        With on_error="skip", rows whose file cannot be read are left out, and a warning counts the files. To find them
        above the limit, every file is decoded once; the cache keeps the result until a file changes.
        """
        root, cache = files.root, cache_folder(self.cache)
        names: list[str] = list(dict.fromkeys(files.names.tolist()))  # an image with several captions occurs again
        known = digest(_FORMAT, self.image_size, self.channels, stamps(root, names))
        size = [self.image_size or 0] * 2  # height and width
        if self.image_size is None:
            entry = cached(cache, f"sizes/{known}", lambda: {"size": torch.tensor(self._first_size(root, names))})
            size = entry["size"].tolist()
        gigabytes = len(files) * self.channels * size[0] * size[1] / 1e9
        in_memory, entry = gigabytes <= self.memory_limit_gb, {"unreadable": from_texts([])}
        if in_memory:
            entry = cached(cache, f"keys/{known}", lambda: {"key": from_texts([self._content(root, names)])})
            (key,) = to_texts(entry["key"])
            entry = cached(cache, f"images/{key}", lambda: self._decode(root, names, size))
        elif self.image_size is None:
            raise InputError(
                f"{len(files)} images of {size[1]} x {size[0]} in {root} take {gigabytes:.3g} GB, over "
                f"memory_limit_gb={self.memory_limit_gb:g}: give image_size, so that they can be read while training"
            )
        elif self.on_error == "skip":
            entry = cached(cache, f"unreadable/{known}", lambda: self._decode(root, names, size, keep=False))
        unreadable = dict.fromkeys(to_texts(entry["unreadable"]))
        if unreadable:
            message = f"{len(unreadable)} of {len(names)} files in {root} cannot be read: {first_few(list(unreadable))}"
            refuse_or_skip(message, self.on_error)
        files = files.select(torch.tensor([row for row, name in enumerate(files.names) if name not in unreadable]))
        if not in_memory:
            return replace(files, size=size[0], channels=self.channels, on_error=self.on_error)
        pixels = entry["pixels"]
        if len(files) > len(pixels):  # an image has several captions; otherwise the pixels stay mapped from the cache
            place = {name: i for i, name in enumerate(name for name in names if name not in unreadable)}
            pixels = pixels[torch.tensor([place[name] for name in files.names])]
        return Images(pixels, files.labels, files.classes, files.text)

    def _decode(self, root: Path, names: list[str], size: list[int], keep: bool = True) -> dict[str, Tensor]:
        """`pixels` of the readable images, [M, C, *size] uint8, if they are to be kept; names of `unreadable` files."""
        pixels = torch.empty(len(names) if keep else 0, self.channels, *size, dtype=torch.uint8)
        view = pixels.numpy()

        def work(row: int) -> bool:
            try:
                image = decode(root / names[row], self.channels, self.image_size)
            except UnreadableImage as error:
                if self.on_error == "raise":
                    raise UnreadableImage(f"{error}; data.on_error=skip leaves such files out") from error
                return False
            if list(image.shape[1:]) != size:
                raise InputError(
                    f"images differ in size: {root / names[0]} is {size[1]} x {size[0]}, {root / names[row]} is "
                    f"{image.shape[2]} x {image.shape[1]}; give data.image_size"
                )
            if keep:
                view[row] = image
            return True

        readable = _in_threads(work, len(names), f"decoding {root}")
        if not any(readable):
            raise UnreadableImage(f"none of the {len(names)} images in {root} can be read")
        unreadable = [name for name, is_readable in zip(names, readable, strict=True) if not is_readable]
        if keep and unreadable:
            pixels = pixels[torch.tensor(readable)]
        return {"pixels": pixels, "unreadable": from_texts(unreadable)}

    def _first_size(self, root: Path, names: list[str]) -> tuple[int, ...]:
        """Height and width of the first image that can be read."""
        for name in names:
            with suppress(UnreadableImage):
                return decode(root / name, self.channels).shape[1:]
        return 0, 0  # `_decode` raises the error

    def _content(self, root: Path, names: list[str]) -> str:
        """A digest of the names and bytes of all files, wherever their folder is."""

        def work(row: int) -> str:
            with suppress(OSError):
                return digest((root / names[row]).read_bytes())
            return ""

        hashes = _in_threads(work, len(names), f"reading {root}")
        return digest(_FORMAT, self.image_size, self.channels, names, hashes)


def folder(root: str | Path, name: str | None = None, **options: Unpack[Options]) -> Splits:
    """The images below `root`: `train/<class>/*` and `test/<class>/*` or `val/<class>/*`, or unlabelled images.

    Without a `train` folder every image below root is an unlabelled training image; a `train` without class
    folders is unlabelled too. Where both `test` and `val` exist, `test` is read. Hidden files are passed over.

    image_size       pixels of either side; needed where images differ in size (shorter side resized, centre kept);
                     None, the default: as they are
    channels         3, the default: RGB; 1: greyscale
    on_error         "raise", the default, names a file that cannot be read; "skip" leaves these out and counts them
    memory_limit_gb  of the decoded pixels of a split, by default 4; a larger one is decoded batch by batch
                     (ImageFiles). With "skip" each of its files is then decoded once at the first start, to find those
                     that cannot be read
    cache            folder of decoded images, by default $CONTRAST_CACHE or ~/.cache/contrast

    Raises InputError for a missing or empty folder, classes that differ between the splits, sizes that differ
    without image_size, a file that cannot be read, and values out of range.
    """
    reading, root = Reading(**options), Path(root).expanduser()
    train, test = _listings(root)
    return Splits(name or root.resolve().name, reading.load(train), None if test is None else reading.load(test))


def _listings(root: Path) -> tuple[ImageFiles, ImageFiles | None]:
    """The training images below `root` and its test images, if it has any; InputError as in `folder`."""
    if not root.is_dir():
        raise InputError(f"{root} is not a folder" if root.exists() else f"data folder {root} does not exist")
    held_out = next((root / split for split in ("test", "val") if (root / split).is_dir()), None)
    if not (root / "train").is_dir():
        if held_out is not None:
            raise InputError(f"{root} has a folder {held_out.name}/ but no train/")
        names = _image_names(root)
        if any("/" in name for name in names):
            warnings.warn(f"{root} has no train/ folder: its {len(names)} images are taken as unlabelled", stacklevel=3)
        return _unlabelled(root, names), None
    train = _by_class(root / "train")
    if held_out is None:
        return train, None
    test = _by_class(held_out)
    if train.classes != test.classes:
        alone = [f"{name} only in train" for name in sorted(set(train.classes) - set(test.classes))]
        alone += [f"{name} only in {held_out.name}" for name in sorted(set(test.classes) - set(train.classes))]
        raise InputError(f"the classes of {root}/train and {held_out.name} differ: {first_few(alone)}")
    return train, test


def _by_class(root: Path) -> ImageFiles:
    """Images of a split with the name of the first folder as their class; unlabelled if there are no folders."""
    names = _image_names(root)
    loose = [name for name in names if "/" not in name]
    if len(loose) == len(names):
        return _unlabelled(root, names)
    if loose:
        raise InputError(f"{len(loose)} images of {root} are in no class folder, but others are: {first_few(loose)}")
    owners = [name.split("/", 1)[0] for name in names]
    classes = tuple(sorted(set(owners)))
    number = {name: i for i, name in enumerate(classes)}
    return ImageFiles(root, np.array(names), torch.tensor([number[owner] for owner in owners]), classes)


def _unlabelled(root: Path, names: list[str]) -> ImageFiles:
    return ImageFiles(root, np.array(names), torch.full((len(names),), UNLABELLED), ())


def _image_names(root: Path) -> list[str]:
    """Names of all images below root, sorted, relative to it, with "/"; InputError if there are none."""
    names = []
    for place, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = Path(place).relative_to(root).as_posix() + "/" if Path(place) != root else ""
        names += [prefix + name for name in files if name.lower().endswith(EXTENSIONS) and not name.startswith(".")]
    if not names:
        raise InputError(f"no images ({', '.join(EXTENSIONS)}) in {root}")
    return sorted(names)


def stamps(root: Path, names: Iterable[str]) -> list[object]:
    """Name, size and times of each file: they change if a file does, and no file has to be opened for them."""

    def stamp(name: str) -> list[object]:
        with suppress(OSError):  # a broken link, for example, which `decode` reports
            status = os.stat(root / name)
            return [name, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        return [name]

    return [str(root.resolve()), [stamp(str(name)) for name in names]]


def refuse_or_skip(problem: str, on_error: str) -> None:
    """Raises an UnreadableImage if on_error is "raise", and warns that rows with the problem are skipped if not."""
    if on_error == "raise":
        raise UnreadableImage(f"{problem}; data.on_error=skip leaves them out")
    warnings.warn(f"skipped: {problem}", stacklevel=4)


def first_few(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are: "a.png, b.png, c.png and 5 more"."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _in_threads(work: Callable[[int], _T], count: int, desc: str) -> list[_T]:
    """work(0), ..., work(count - 1) under a progress bar; Pillow, hashing and reading let other threads run."""

    def block(start: int) -> list[_T]:
        return [work(row) for row in range(start, min(start + _BLOCK, count))]

    starts, bar = range(0, count, _BLOCK), {"desc": desc, "unit": "image", "unit_scale": _BLOCK, "delay": 1}
    return list(chain.from_iterable(thread_map(block, starts, max_workers=min(32, os.cpu_count() or 1), **bar)))
