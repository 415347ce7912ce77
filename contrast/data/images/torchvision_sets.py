"""The data sets of torchvision, as whole arrays; or the same data as a folder of images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import torch
from torchvision import datasets

from contrast.data.images.folder import folder
from contrast.data.images.image_set import Images, Splits
from contrast.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger(__name__)


class FolderOptions(TypedDict, total=False):
    """What `folder` takes, for a folder of images in the place of torchvision's files."""

    image_size: int | None
    channels: int
    on_error: str
    memory_limit_gb: float
    cache: str | Path | None


class _Source(NamedTuple):
    dataset: Callable[..., Any]
    path: str  # of torchvision's files, below the root
    classes: tuple[str, ...] | None = None  # None: those that torchvision has
    channels: int = 3
    train: Mapping[str, str | bool] = {"train": True}  # what makes `dataset` read the training images
    test: Mapping[str, str | bool] = {"train": False}


_DIGITS = tuple("0123456789")
_STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_SOURCES = {
    "cifar10": _Source(datasets.CIFAR10, "cifar-10-batches-py"),
    "cifar100": _Source(datasets.CIFAR100, "cifar-100-python"),
    "mnist": _Source(datasets.MNIST, "MNIST/raw", _DIGITS, channels=1),
    "fashion_mnist": _Source(datasets.FashionMNIST, "FashionMNIST/raw", channels=1),
    "svhn": _Source(datasets.SVHN, "train_32x32.mat", _DIGITS, train={"split": "train"}, test={"split": "test"}),
    "stl10": _Source(
        datasets.STL10, "stl10_binary", _STL10, train={"split": "train+unlabeled"}, test={"split": "test"}
    ),
}


def cifar10(root: str | Path, download: bool = False, **options: Unpack[FolderOptions]) -> Splits:
    """50,000 and 10,000 colour images, 32 x 32, of 10 classes (Krizhevsky, 2009).

    Here as below: `root` holds torchvision's own files, or else a folder of images, `train/<class>/*` and
    `test|val/<class>/*`, read by `folder` with `options`. InputError if it holds neither, or damaged files.
    """
    return _read("cifar10", root, download, options)


def cifar100(root: str | Path, download: bool = False, **options: Unpack[FolderOptions]) -> Splits:
    """50,000 and 10,000 colour images, 32 x 32, of 100 classes (Krizhevsky, 2009)."""
    return _read("cifar100", root, download, options)


def mnist(root: str | Path, download: bool = False, **options: Unpack[FolderOptions]) -> Splits:
    """60,000 and 10,000 handwritten digits, 28 x 28, greyscale (LeCun et al., 1998)."""
    return _read("mnist", root, download, options)


def fashion_mnist(root: str | Path, download: bool = False, **options: Unpack[FolderOptions]) -> Splits:
    """60,000 and 10,000 articles of clothing, 28 x 28, greyscale, of 10 classes (Xiao et al., 2017)."""
    return _read("fashion_mnist", root, download, options)


def svhn(root: str | Path, download: bool = False, **options: Unpack[FolderOptions]) -> Splits:
    """73,257 and 26,032 house numbers' digits in colour, 32 x 32 (Netzer et al., 2011)."""
    return _read("svhn", root, download, options)


def stl10(root: str | Path, download: bool = False, **options: Unpack[FolderOptions]) -> Splits:
    """5,000 and 8,000 colour images, 96 x 96, of 10 classes, and 100,000 unlabelled ones (Coates et al., 2011)."""
    return _read("stl10", root, download, options)


def _read(name: str, root: str | Path, download: bool, options: FolderOptions) -> Splits:
    """torchvision's files if `root` has them or they may be downloaded; else a folder of images."""
    source, root = _SOURCES[name], Path(root).expanduser()
    path = root / source.path
    present = path.exists()
    if not present and (root / "train").is_dir():
        log.info("%s: reading the folder of images %s", name, root)
        options.setdefault("channels", source.channels)
        return folder(root, name=name, **options)
    if not present and not download:
        raise InputError(
            f"no {name} in {root}: looked for {source.path} (torchvision's files) and train/ (a folder of images); "
            "data.download=true fetches it"
        )
    try:
        train, test = [_images(source, root, download, split) for split in (source.train, source.test)]
    except (RuntimeError, OSError) as error:
        message = " ".join(str(error).split())
        if present:
            raise InputError(f"{path} is damaged or incomplete: {message}") from error
        raise InputError(f"cannot download {name} to {root}: {message}") from error
    labelled = int((train.labels >= 0).sum())
    if labelled == len(train):
        return Splits(name, train, test)
    parts = slice(labelled), slice(labelled, None)  # views: the labelled images of STL-10 come first
    train, unlabelled = [Images(train.pixels[part], train.labels[part], train.classes) for part in parts]
    return Splits(name, train, test, unlabelled)


def _images(source: _Source, root: Path, download: bool, split: Mapping[str, str | bool]) -> Images:
    dataset = source.dataset(root, download=download, **split)
    pixels = torch.as_tensor(dataset.data)  # [N, H, W], [N, H, W, 3] or [N, C, H, W]
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2)
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return Images(pixels.contiguous(), labels, tuple(source.classes or dataset.classes))
