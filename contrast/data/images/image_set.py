"""What a data set is to the rest of the package: uint8 images, labels, names of classes, captions.

N images, C channels, H x W pixels; L tokens of a caption.
"""

from __future__ import annotations

import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from contrast.candidates import as_ids
from contrast.data.images.decode import UnreadableImage, check_on_error, decode
from contrast.data.images.names import Names
from contrast.data.text.tokenizer import PADDING, Tokenizer
from contrast.errors import InputError, shown

log = logging.getLogger(__name__)

UNLABELLED = -1
# of ImageNet's training set, in 0..1 (He et al., 2015, and every torchvision recipe since)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_BLOCK = 4096  # images whose pixels are counted at once


class Batch(NamedTuple):
    """What a training step gets."""

    pixels: Tensor  # [B, C, H, W] uint8
    labels: Tensor  # [B] int64, -1 where unlabelled
    index: Tensor  # type: ignore[assignment]  # [B] int64, row in the data set
    text: Tensor | None = None  # [B, L] int64 token ids, 0: padding; None without captions

    def part(self, rows: slice) -> Batch:
        return Batch(self.pixels[rows], self.labels[rows], self.index[rows], _at(self.text, rows))


class _Rows(ABC):
    """What Images and ImageFiles share: every row has a label and, in a data set with captions, a caption."""

    labels: Tensor
    classes: tuple[str, ...]
    text: Tensor | None

    @abstractmethod
    def __len__(self) -> int: ...

    def _check(self) -> None:
        """Make labels and token ids int64. Raise InputError unless there is one for each image, in its range."""
        images, labels = len(self), as_ids("labels", self.labels)
        text = None if self.text is None else as_ids("token ids", self.text)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "text", text)
        if labels.shape != (images,):
            raise InputError(f"{images} images need labels of shape [{images}], not {list(labels.shape)}")
        lowest, highest = (int(labels.min()), int(labels.max())) if images else (UNLABELLED, UNLABELLED)
        if lowest < UNLABELLED or highest >= len(self.classes):
            raise InputError(f"labels must be in -1..{len(self.classes) - 1}, but are in {lowest}..{highest}")
        if text is not None and (text.ndim != 2 or len(text) != images):
            raise InputError(f"{images} images need captions of shape [{images}, L], not {list(text.shape)}")
        if text is not None and text.numel() and int(text.min()) < PADDING:
            raise InputError(f"token ids must be {PADDING} (padding) or more, but one is {int(text.min())}")

    def _batch(self, pixels: Tensor, rows: Tensor) -> Batch:
        return Batch(pixels, self.labels[rows], rows, _at(self.text, rows))


@dataclass(frozen=True, eq=False)
class Images(_Rows):
    """A data set in memory.

    Labels and token ids may be whole numbers of any type (`candidates.as_ids`); they are kept as int64. Raises
    InputError where shapes or types do not fit, or a label is the number of no class.
    """

    pixels: Tensor  # [N, C, H, W] uint8
    labels: Tensor  # [N] int64, -1 where unlabelled
    classes: tuple[str, ...]
    text: Tensor | None = None  # [N, L] int64 token ids, 0: padding
    names: Names | None = None  # [N] of the files that the images were read from

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4:
            raise InputError(f"images must be uint8 [N, C, H, W], not {self.pixels.dtype} {list(self.pixels.shape)}")
        self._check()

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def channels(self) -> int:
        return self.pixels.shape[1]

    @property
    def size(self) -> int:
        """The shorter side in pixels."""
        return min(self.pixels.shape[2:])

    def select(self, rows: Tensor) -> Images:
        """The images at `rows` [M] int64, copied, in that order."""
        names = None if self.names is None else self.names[rows.cpu().numpy()]
        return Images(self.pixels[rows], self.labels[rows], self.classes, _at(self.text, rows), names)

    def take(self, rows: Tensor) -> Batch:
        """The images at `rows` [B] int64."""
        return self._batch(self.pixels[rows], rows)

    def to(self, device: torch.device | str) -> Images:
        """The data set with its tensors on `device`."""
        text = None if self.text is None else self.text.to(device)
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device), text=text)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel of all pixels in 0..1, each [C] float64.

        Exact: pixel values are counted. A constant channel gets a deviation of 1, so that dividing by it is safe.
        """
        counts = torch.zeros(self.channels, 256, dtype=torch.int64)  # of each pixel value
        for block in self.pixels.split(_BLOCK):
            counts += torch.stack([part.flatten().bincount(minlength=256) for part in block.unbind(1)]).cpu()
        values, n = torch.arange(256), max(1, self.pixels.numel() // self.channels)
        total, squares = (counts @ values).tolist(), (counts @ values**2).tolist()
        # n^2 var = n sum(x^2) - sum(x)^2, in Python's integers: no cancellation
        scaled = [n * q - s * s for s, q in zip(total, squares, strict=True)]
        mean = [s / (255 * n) for s in total]
        std = [math.sqrt(v) / (255 * n) if v else 1.0 for v in scaled]
        return torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class ImageFiles(_Rows):
    """A data set too large for memory: used like Images, but each batch is decoded from its files.

    A file that cannot be read is an UnreadableImage. With on_error="skip", the next readable image (with its own label,
    row and caption) takes its place in the batch, with a warning: a batch keeps its size on every rank.

    A subclass for images that are no files of a folder gives `file`, `title` and `stamp`.
    """

    root: Path
    names: Sequence[str]  # [N] paths relative to root; kept as Names
    labels: Tensor  # [N] int64, -1 where unlabelled
    classes: tuple[str, ...]
    size: int = 0  # pixels of either side; 0: as the files are
    channels: int = 3
    range: Sequence[float] | None = None  # values of black and white in files of more than 8 bits
    on_error: str = "raise"
    text: Tensor | None = None  # [N, L] int64 token ids, 0: padding
    fast_jpeg: bool = False  # large JPEGs are decoded at a reduced size (`decode`)
    threads: int = 1  # images that `take` reads at a time
    unit: ClassVar[str] = "files"

    def __post_init__(self) -> None:
        check_on_error(self.on_error)
        if not isinstance(self.names, Names):
            object.__setattr__(self, "names", Names(map(str, self.names)))
        self._check()

    def __len__(self) -> int:
        return len(self.names)

    def select(self, rows: Tensor) -> Self:
        """The files at `rows` [M] int64, in that order."""
        assert isinstance(self.names, Names)
        return replace(self, names=self.names[rows.numpy()], labels=self.labels[rows], text=_at(self.text, rows))

    def take(self, rows: Tensor) -> Batch:
        """The images at `rows` [B] int64."""
        if self.threads == 1:
            decoded = [self._decode(row) for row in rows.tolist()]
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                decoded = list(pool.map(self._decode, rows.tolist()))
        pixels = torch.empty(len(decoded), self.channels, self.size, self.size, dtype=torch.uint8)
        for slot, (_, image) in zip(pixels, decoded, strict=True):
            slot.numpy()[:] = image
        return self._batch(pixels, torch.tensor([row for row, _ in decoded], dtype=torch.int64))

    def statistics(self) -> tuple[Tensor, Tensor]:
        """ImageNet's mean and standard deviation, each [C] float64 in 0..1 (their average, if C is not 3).

        Not those of these files: to measure them, every file would have to be decoded.
        """
        both = torch.tensor([IMAGENET_MEAN, IMAGENET_STD], dtype=torch.float64)
        mean, std = both if self.channels == 3 else both.mean(dim=1, keepdim=True).expand(2, self.channels)
        return mean, std

    @property
    def where(self) -> str:
        """Where the images are, for messages."""
        return str(self.root)

    def file(self, row: int) -> Path | BytesIO:
        """The file of the image at `row`, or its bytes."""
        return self.root / self.names[row]

    def title(self, row: int) -> str:
        """What messages call the image at `row`."""
        return shown(self.root / self.names[row])

    def first_rows(self) -> np.ndarray:
        """The first row that has the same image as each row, [N] int64: an image may have several captions."""
        first: dict[str, int] = {}
        return np.array([first.setdefault(name, row) for row, name in enumerate(self.names)], dtype=np.int64)

    def stamp(self) -> list[object]:
        """Name, size and times of each file: they change if a file does, and no file has to be opened for them."""

        def stamp(name: str) -> list[object]:
            with suppress(OSError):  # a broken link, for example, which `decode` reports
                status = os.stat(self.root / name)
                return [name, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            return [name]

        return [str(self.root.resolve()), [stamp(name) for name in self.names]]

    @property
    def decoding(self) -> list[object]:
        """What the pixels of given files depend on."""
        limits = self.range and [float(value) for value in self.range]
        return [self.size, self.channels, limits, *["fast_jpeg"] * self.fast_jpeg]

    def pixels(self, row: int) -> np.ndarray:
        """The image at `row`, uint8 [C, H, W]; UnreadableImage if it cannot be read."""
        file = self.file(row)
        try:
            return decode(file, self.channels, self.size or None, self.range, self.fast_jpeg)
        except UnreadableImage as error:
            if isinstance(file, Path):
                raise
            raise UnreadableImage(f"{self.title(row)}: {error}") from error

    def _decode(self, row: int) -> tuple[int, np.ndarray]:
        """The image at `row`, or the next one that may take its place; and its row."""
        reason = ""
        for step in range(len(self)):
            place = (row + step) % len(self)
            try:
                return place, self.pixels(place)
            except UnreadableImage as error:
                if self.on_error == "raise":
                    raise UnreadableImage(f"{error}; data.on_error=skip leaves such {self.unit} out") from error
                log.warning("%s: the next image takes its place in this batch", error)
                reason = reason or str(error)
        raise UnreadableImage(f"none of the {len(self)} images in {self.where} can be read: {reason}")


@dataclass(frozen=True, eq=False)
class Splits:
    """What every data set loader returns.

    `train` may be wholly unlabelled (all labels -1: a flat folder); `test` is None if the data set has none. With
    captions, `tokenizer` made their ids: a text encoder is built for its `size` and the L of `train.text`, it encodes
    new texts, and its `facts()` are plain values for a checkpoint. `others` are splits that only an embedding reads.

    Raises InputError if training and test images are in memory and differ in height or width.
    """

    name: str
    train: Images | ImageFiles
    test: Images | ImageFiles | None
    unlabelled: Images | ImageFiles | None = None
    tokenizer: Tokenizer | None = field(default=None, kw_only=True)
    others: Mapping[str, Images | ImageFiles] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.train, Images) and isinstance(self.test, Images):
            train, test = tuple(self.train.pixels.shape[2:]), tuple(self.test.pixels.shape[2:])
            if train != test:
                raise InputError(
                    f"images of {self.name} differ in size: (height, width) is {train} to train and {test} to test; "
                    "give data.image_size"
                )

    @cached_property
    def pretrain(self) -> Images | ImageFiles:
        """Everything that pretraining may see: `train`, whose rows keep their numbers, then `unlabelled`.

        InputError where one of them has captions and the other has not, or of another length.
        """
        if self.unlabelled is None:
            return self.train
        first, second = self.train, self.unlabelled
        if not (isinstance(first, Images) and isinstance(second, Images)):
            raise InputError(f"{self.name}: unlabelled images can be joined to the training images only in memory")
        lengths = [None if part.text is None else part.text.shape[1] for part in (first, second)]
        if lengths[0] != lengths[1]:
            raise InputError(
                f"{self.name}: captions of {lengths[0]} tokens (train) and {lengths[1]} (unlabelled) cannot be joined"
            )
        pixels, labels = torch.cat([first.pixels, second.pixels]), torch.cat([first.labels, second.labels])
        text = None if first.text is None or second.text is None else torch.cat([first.text, second.text])
        return Images(pixels, labels, first.classes, text)


def _at(text: Tensor | None, rows: Tensor | slice) -> Tensor | None:
    return None if text is None else text[rows]
