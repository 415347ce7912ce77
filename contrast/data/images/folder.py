"""Any folder of images as a data set."""

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from typing_extensions import Unpack

from contrast.data.images.image_set import UNLABELLED, ImageFiles, Splits
from contrast.data.images.reading import Options, Reading, first_few
from contrast.errors import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


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
