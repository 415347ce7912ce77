"""The data sets of torchvision, as whole arrays; or the same data as a folder of images."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import datasets

from contrast.data.images.folder import folder
from contrast.data.images.image_set import Images, Splits
from contrast.errors import InputError

log = logging.getLogger(__name__)

DIGITS = tuple("0123456789")
STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def cifar10(root: str | Path, download: bool = False, **folder_options: Any) -> Splits:
    """50,000 and 10,000 colour images, 32 x 32, of 10 classes (Krizhevsky, 2009).

    Here as below: `root` holds torchvision's own files, or else a folder of images, `train/<class>/*` and
    `test|val/<class>/*`, read by `folder` with `folder_options`. InputError if it holds neither, or damaged files.
    """
    return _read("cifar10", root, "cifar-10-batches-py", download, folder_options, _cifar(datasets.CIFAR10))


def cifar100(root: str | Path, download: bool = False, **folder_options: Any) -> Splits:
    """50,000 and 10,000 colour images, 32 x 32, of 100 classes (Krizhevsky, 2009)."""
    return _read("cifar100", root, "cifar-100-python", download, folder_options, _cifar(datasets.CIFAR100))


def mnist(root: str | Path, download: bool = False, **folder_options: Any) -> Splits:
    """60,000 and 10,000 handwritten digits, 28 x 28, greyscale (LeCun et al., 1998)."""
    options = {"channels": 1, **folder_options}
    return _read("mnist", root, "MNIST/raw", download, options, _mnist(datasets.MNIST, DIGITS))


def fashion_mnist(root: str | Path, download: bool = False, **folder_options: Any) -> Splits:
    """60,000 and 10,000 articles of clothing, 28 x 28, greyscale, of 10 classes (Xiao et al., 2017)."""
    options = {"channels": 1, **folder_options}
    maker = _mnist(datasets.FashionMNIST, tuple(datasets.FashionMNIST.classes))
    return _read("fashion_mnist", root, "FashionMNIST/raw", download, options, maker)


def svhn(root: str | Path, download: bool = False, **folder_options: Any) -> Splits:
    """73,257 and 26,032 house numbers' digits in colour, 32 x 32 (Netzer et al., 2011)."""

    def read(root: Path, download: bool) -> Splits:
        train, test = (datasets.SVHN(root, split=split, download=download) for split in ("train", "test"))
        return Splits("svhn", *(_images(part.data, part.labels, DIGITS) for part in (train, test)))

    return _read("svhn", root, "train_32x32.mat", download, folder_options, read)


def stl10(root: str | Path, download: bool = False, **folder_options: Any) -> Splits:
    """5,000 and 8,000 colour images, 96 x 96, of 10 classes, and 100,000 unlabelled ones (Coates et al., 2011)."""

    def read(root: Path, download: bool) -> Splits:
        both = datasets.STL10(root, split="train+unlabeled", download=download)
        test = datasets.STL10(root, split="test")
        everything = _images(both.data, both.labels, STL10)
        labelled = int((everything.labels >= 0).sum())  # they come first
        train, unlabelled = (
            Images(everything.pixels[part], everything.labels[part], STL10)
            for part in (slice(labelled), slice(labelled, None))
        )
        return Splits("stl10", train, _images(test.data, test.labels, STL10), unlabelled)

    return _read("stl10", root, "stl10_binary", download, folder_options, read)


def _cifar(dataset: type[datasets.CIFAR10]) -> Callable[[Path, bool], Splits]:
    def read(root: Path, download: bool) -> Splits:
        train, test = (dataset(root, train=part, download=download) for part in (True, False))
        return Splits(
            dataset.__name__.lower(),
            *(_images(part.data.transpose(0, 3, 1, 2), part.targets, tuple(part.classes)) for part in (train, test)),
        )

    return read


def _mnist(dataset: type[datasets.MNIST], classes: tuple[str, ...]) -> Callable[[Path, bool], Splits]:
    name = {"MNIST": "mnist", "FashionMNIST": "fashion_mnist"}[dataset.__name__]

    def read(root: Path, download: bool) -> Splits:
        train, test = (dataset(root, train=part, download=download) for part in (True, False))
        return Splits(name, *(_images(part.data[:, None], part.targets, classes) for part in (train, test)))

    return read


def _images(pixels: Any, labels: Any, classes: tuple[str, ...]) -> Images:
    pixels = torch.from_numpy(np.ascontiguousarray(pixels))
    return Images(pixels, torch.from_numpy(np.asarray(labels, dtype=np.int64)), classes)


def _read(
    name: str,
    root: str | Path,
    marker: str,
    download: bool,
    folder_options: dict[str, Any],
    read: Callable[[Path, bool], Splits],
) -> Splits:
    """torchvision's files if `root` has them (the path `marker` tells) or may fetch them; else a folder of images."""
    root = Path(root).expanduser()
    there = (root / marker).exists()
    if not there and (root / "train").is_dir():
        log.info("%s: reading the folder of images %s", name, root)
        return folder(root, name=name, **folder_options)
    if not there and not download:
        raise InputError(
            f"no {name} in {root}: looked for {marker} (torchvision's files) and train/ (a folder of images); "
            "data.download=true fetches it"
        )
    try:
        return read(root, download)
    except (RuntimeError, OSError) as error:
        told = " ".join(str(error).split())
        if there:
            raise InputError(f"{root / marker} is damaged or incomplete: {told}") from error
        raise InputError(f"cannot download {name} to {root}: {told}") from error
