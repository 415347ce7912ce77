"""Any folder of images as a data set: which files are in it, and the way into memory through the cache."""

import math
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from contrast.data.images.cache import Cache, digest
from contrast.data.images.decode import UnreadableImage, check_on_error, decode, names_few
from contrast.data.images.image_set import UNLABELLED, ImageFiles, Images, Splits
from contrast.errors import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_FORMAT = "1"  # part of every key: to change when the same files are to give other pixels
_BLOCK = 64  # files that a thread takes at a time
_T = TypeVar("_T")


class Listing(NamedTuple):
    """The images of one split, in order."""

    root: Path
    names: list[str]  # relative to root, with "/"; sorted
    labels: Tensor  # [N] int64
    classes: tuple[str, ...]


def folder(
    root: str | Path,
    image_size: int | None = None,
    channels: int = 3,
    on_error: str = "raise",
    memory_limit_gb: float = 4.0,
    cache: str | Path | None = None,
    name: str | None = None,
) -> Splits:
    """The images below `root`: `train/<class>/*` and `test/<class>/*` or `val/<class>/*`, or unlabelled images.

    Without a `train` folder every image below root is an unlabelled training image; a `train` without class
    folders is unlabelled too. Where both `test` and `val` exist, `test` is read. Hidden files are passed over.

    image_size       pixels of either side; needed where images differ in size (shorter side resized, centre kept)
    channels         3: RGB, 1: greyscale
    on_error         "raise" names a file that cannot be read; "skip" leaves such files out and counts them
    memory_limit_gb  of the decoded pixels of a split; a larger one is decoded batch by batch (ImageFiles)
    cache            folder of decoded images, by default $CONTRAST_CACHE or ~/.cache/contrast

    Raises InputError for a missing or empty folder, classes that differ between the splits, sizes that differ
    without image_size, a file that cannot be read, and values out of range.
    """
    check_options(image_size, channels, on_error)
    root = Path(root).expanduser()
    train, test = list_splits(root)

    def read(listing: Listing) -> Images | ImageFiles:
        return load(listing, image_size, channels, on_error, memory_limit_gb, Cache(cache))

    splits = Splits(name or root.resolve().name, read(train), None if test is None else read(test))
    check_sides(splits, root)
    return splits


def check_options(image_size: int | None, channels: int, on_error: str) -> None:
    """InputError for values that no images can be decoded with."""
    check_on_error(on_error)
    if channels not in (1, 3):
        raise InputError(f"images have 1 channel (greyscale) or 3 (RGB), not {channels}")
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size must be at least 1 pixel, not {image_size}")


def check_sides(splits: Splits, root: Path) -> None:
    """InputError if the images in memory of the two splits differ in height or width."""
    if isinstance(splits.train, Images) and isinstance(splits.test, Images):
        sides = [tuple(images.pixels.shape[2:]) for images in (splits.train, splits.test)]
        if sides[0] != sides[1]:
            raise InputError(
                f"images of {root} differ in size: (height, width) is {sides[0]} to train and {sides[1]} to test; "
                "give data.image_size"
            )


def list_splits(root: Path) -> tuple[Listing, Listing | None]:
    """The training images and, where there are any, the test images below `root`; InputError as in `folder`."""
    if not root.is_dir():
        raise InputError(f"data folder {root} does not exist" if not root.exists() else f"{root} is not a folder")
    held = next((root / split for split in ("test", "val") if (root / split).is_dir()), None)
    if not (root / "train").is_dir():
        if held is not None:
            raise InputError(f"{root} has a folder {held.name}/ but no train/")
        names = _image_names(root)
        if any("/" in name for name in names):
            warnings.warn(f"{root} has no train/ folder: its {len(names)} images are taken as unlabelled", stacklevel=3)
        return _unlabelled(root, names), None
    train = _by_class(root / "train")
    if held is None:
        return train, None
    test = _by_class(held)
    if train.classes != test.classes:
        alone = [f"{name} only in train" for name in sorted(set(train.classes) - set(test.classes))]
        alone += [f"{name} only in {held.name}" for name in sorted(set(test.classes) - set(train.classes))]
        raise InputError(f"the classes of {root}/train and {held.name} differ: {names_few(alone)}")
    return train, test


def load(
    listing: Listing,
    image_size: int | None,
    channels: int,
    on_error: str,
    memory_limit_gb: float,
    cache: Cache,
    rows: int | None = None,
) -> Images | ImageFiles:
    """The images of a listing: decoded, from the cache, or, above the memory limit, as ImageFiles.

    rows  the number that they will be repeated to (captions), which is then what has to fit into memory
    """
    root, names, labels, classes = listing
    seen = digest(_fingerprint(listing, image_size, channels))
    key = cache.recall(seen)
    found = None if key is None else cache.load(key)
    if found is not None:
        sides = tuple(found[0].shape[2:])
    elif image_size is not None:
        sides = (image_size, image_size)
    else:
        sides = _first_size(listing, channels)
    rows = len(names) if rows is None else rows
    gigabytes = rows * channels * math.prod(sides) / 1e9
    if gigabytes > memory_limit_gb:
        if image_size is None:
            raise InputError(
                f"{rows} images of {sides[1]} x {sides[0]} in {root} take {gigabytes:.3g} GB, over "
                f"memory_limit_gb={memory_limit_gb:g}: give image_size, so that they can be read while training"
            )
        return ImageFiles(root, np.array(names), labels, classes, image_size, channels, on_error)
    if found is None:
        key = _content_key(listing, image_size, channels)
        found = cache.load(key)
        if found is None:
            found = decode_all(listing, sides, image_size, channels, on_error)
            cache.save(key, *found)
        cache.note(seen, key)
    pixels, skipped = found
    if skipped:
        what = f"{len(skipped)} of {len(names)} files in {root} cannot be read: {names_few(skipped)}"
        if on_error == "raise":
            raise UnreadableImage(f"{what}; data.on_error=skip goes on without them")
        warnings.warn(f"skipped: {what}", stacklevel=3)
        left_out = set(skipped)
        labels = labels[torch.tensor([name not in left_out for name in names])]
    return Images(pixels, labels, classes)


def decode_all(
    listing: Listing, sides: tuple[int, ...], image_size: int | None, channels: int, on_error: str
) -> tuple[Tensor, list[str]]:
    """Every readable image of a listing, [M, C, *sides] uint8, and the names of the others, decoded by threads."""
    root, names = listing.root, listing.names
    pixels = torch.empty(len(names), channels, *sides, dtype=torch.uint8)
    view = pixels.numpy()

    def work(row: int) -> bool:
        try:
            image = decode(root / names[row], channels, image_size)
        except UnreadableImage as error:
            if on_error == "raise":
                raise UnreadableImage(f"{error}; data.on_error=skip goes on without it") from error
            return False
        if image.shape[1:] != sides:
            raise InputError(
                f"images differ in size: {root / names[0]} is {sides[1]} x {sides[0]}, {root / names[row]} is "
                f"{image.shape[2]} x {image.shape[1]}; give data.image_size"
            )
        view[row] = image
        return True

    readable = _in_threads(work, len(names), f"decoding {root}")
    if not any(readable):
        raise UnreadableImage(f"none of the {len(names)} images in {root} can be read")
    if not all(readable):
        pixels = pixels[torch.tensor(readable)]
    return pixels, [name for name, good in zip(names, readable, strict=True) if not good]


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


def _unlabelled(root: Path, names: list[str]) -> Listing:
    return Listing(root, names, torch.full((len(names),), UNLABELLED, dtype=torch.int64), ())


def _by_class(root: Path) -> Listing:
    """Images of a split with the name of the first folder as their class; unlabelled if there are no folders."""
    names = _image_names(root)
    beside = [name for name in names if "/" not in name]
    if len(beside) == len(names):
        return _unlabelled(root, names)
    if beside:
        raise InputError(f"{len(beside)} images lie beside the class folders of {root}: {names_few(beside)}")
    owners = [name.split("/", 1)[0] for name in names]
    classes = tuple(sorted(set(owners)))
    number = {name: i for i, name in enumerate(classes)}
    return Listing(root, names, torch.tensor([number[owner] for owner in owners]), classes)


def _first_size(listing: Listing, channels: int) -> tuple[int, int]:
    """Height and width of the first image that can be read."""
    for name in listing.names:
        try:
            image = decode(listing.root / name, channels)
        except UnreadableImage:
            continue  # reported when all are decoded
        return image.shape[1], image.shape[2]
    raise UnreadableImage(f"none of the {len(listing.names)} images in {listing.root} can be read")


def _fingerprint(listing: Listing, image_size: int | None, channels: int) -> list[str]:
    """What tells without opening a file that nothing has changed."""
    parts = [_FORMAT, str(listing.root.resolve()), str(image_size), str(channels)]
    for name in listing.names:
        try:
            stat = os.stat(listing.root / name)
            parts.append(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}")
        except OSError:  # a broken link, say: `decode` will name it
            parts.append(name)
    return parts


def _content_key(listing: Listing, image_size: int | None, channels: int) -> str:
    """Of the names and bytes of all files, wherever they lie."""
    root, names = listing.root, listing.names

    def work(row: int) -> bytes:
        try:
            return blake2b((root / names[row]).read_bytes(), digest_size=16).digest()
        except OSError:
            return b""

    hashes = _in_threads(work, len(names), f"reading {root}")
    pairs = [part for pair in zip(names, hashes, strict=True) for part in pair]
    return digest([_FORMAT, str(image_size), str(channels), *pairs])


def _in_threads(work: Callable[[int], _T], count: int, desc: str) -> list[_T]:
    """work(0), ..., work(count - 1) under a progress bar; Pillow, hashing and reading let other threads run."""

    def block(start: int) -> Sequence[_T]:
        return [work(row) for row in range(start, min(start + _BLOCK, count))]

    done: list[_T] = []
    with (
        ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool,
        tqdm(total=count, desc=desc, unit="image", delay=1) as bar,
    ):
        try:
            for part in pool.map(block, range(0, count, _BLOCK)):
                done += part
                bar.update(len(part))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return done
