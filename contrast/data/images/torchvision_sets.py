"""The data sets of torchvision, as whole arrays; or the same data as a folder of images."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torchvision import datasets
from typing_extensions import Unpack

from contrast.data.images.folder import Options, folder
from contrast.data.images.image_set import Images, Splits
from contrast.errors import InputError, named_errors

log = logging.getLogger(__name__)


class _Source(NamedTuple):
    name: str
    dataset: type[datasets.VisionDataset]
    path: str  # of torchvision's files, below the root
    classes: tuple[str, ...] = ()  # none: those that torchvision has
    channels: int = 3
    splits: tuple[Mapping[str, str | bool], ...] = ({"train": True}, {"train": False})  # of training and of test images


_DIGITS = tuple("0123456789")
_STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def cifar10(root: str | Path, download: bool = False, **options: Unpack[Options]) -> Splits:
    """50,000 and 10,000 colour images, 32 x 32, of 10 classes (Krizhevsky, 2009).

    Here as below: `root` holds torchvision's own files, or else a folder of images, `train/<class>/*` and
    `test|val/<class>/*`, read by `folder` with `options`. InputError if it holds neither, or damaged files.
    """
    return _read(_Source("cifar10", datasets.CIFAR10, "cifar-10-batches-py"), root, download, options)


def cifar100(root: str | Path, download: bool = False, **options: Unpack[Options]) -> Splits:
    """50,000 and 10,000 colour images, 32 x 32, of 100 classes (Krizhevsky, 2009)."""
    return _read(_Source("cifar100", datasets.CIFAR100, "cifar-100-python"), root, download, options)


def mnist(root: str | Path, download: bool = False, **options: Unpack[Options]) -> Splits:
    """60,000 and 10,000 handwritten digits, 28 x 28, greyscale (LeCun et al., 1998)."""
    return _read(_Source("mnist", datasets.MNIST, "MNIST/raw", _DIGITS, channels=1), root, download, options)


def fashion_mnist(root: str | Path, download: bool = False, **options: Unpack[Options]) -> Splits:
    """60,000 and 10,000 articles of clothing, 28 x 28, greyscale, of 10 classes (Xiao et al., 2017)."""
    return _read(
        _Source("fashion_mnist", datasets.FashionMNIST, "FashionMNIST/raw", channels=1), root, download, options
    )


def svhn(root: str | Path, download: bool = False, **options: Unpack[Options]) -> Splits:
    """73,257 and 26,032 house numbers' digits in colour, 32 x 32 (Netzer et al., 2011)."""
    splits = {"split": "train"}, {"split": "test"}
    return _read(_Source("svhn", datasets.SVHN, "train_32x32.mat", _DIGITS, splits=splits), root, download, options)


def stl10(root: str | Path, download: bool = False, **options: Unpack[Options]) -> Splits:
    """5,000 and 8,000 colour images, 96 x 96, of 10 classes, and 100,000 unlabelled ones (Coates et al., 2011)."""
    splits = {"split": "train+unlabeled"}, {"split": "test"}
    return _read(_Source("stl10", datasets.STL10, "stl10_binary", _STL10, splits=splits), root, download, options)


def _read(source: _Source, root: str | Path, download: bool, options: Options) -> Splits:
    """torchvision's files if `root` has them or they may be downloaded; else a folder of images."""
    name, root = source.name, Path(root).expanduser()
    path = root / source.path
    present = path.exists()
    if not present and (root / "train").is_dir():
        log.info("%s: reading the folder of images %s", name, root)
        return folder(root, name, **({"channels": source.channels} | options))
    if not present and not download:
        raise InputError(
            f"no {name} in {root}: neither {source.path} (torchvision's files) nor train/ (a folder of images); "
            "data.download=true fetches it"
        )
    problem = f"{path} is damaged or incomplete" if present else f"cannot download {name} to {root}"
    with named_errors((RuntimeError, OSError), problem):
        train, test = [_images(source, root, download, split) for split in source.splits]
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
    return Images(pixels.contiguous(), labels, source.classes or tuple(dataset.classes))
