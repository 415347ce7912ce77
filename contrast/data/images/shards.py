"""Data sets in tar files (WebDataset's layout), local or remote, read by an index instead of as a stream.

Files of a tar that follow each other and have the same name up to the first dot are a sample: 000012.jpg, 000012.cls
and 000012.txt are its image, its class and its caption. The index says where in a tar each image is. It is made once,
tar by tar, and is kept in the cache. So any image can be read at any time, locally or by a byte range over the network:
order, ranks, workers, resuming and ids are those of every other data set.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from itertools import compress
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
import torch
from fsspec.core import url_to_fs
from torch import Tensor
from typing_extensions import Self, Unpack

from contrast.data.images.decode import UnreachableImage
from contrast.data.images.folder import Options, Reading, in_threads, refuse_or_skip
from contrast.data.images.image_set import UNLABELLED, ImageFiles, Splits
from contrast.data.images.names import Names
from contrast.data.images.subset import check_test_fraction, hold_out_test
from contrast.data.images.tar_index import index_of, version_of
from contrast.data.store import cache_folder, cached, digest, to_texts
from contrast.data.text.tokenizer import Tokenizer, tokenizer_for
from contrast.errors import InputError, first_few, one_line
from contrast.network import without_secrets

log = logging.getLogger(__name__)

_FORMAT = 2  # of an index
_REMOTE_THREADS = 16  # images of a batch that are fetched at a time
_WAITS = (0.0, 0.5, 2.0)  # seconds before each attempt to fetch an image


@dataclass(frozen=True, eq=False)
class ShardImages(ImageFiles):
    """Images in tar files, each of which is one range of bytes. `names` are TAR/SAMPLE."""

    urls: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()  # a digest for each tar, which changes if the tar does
    # [N, 3] tar, first byte, bytes
    places: np.ndarray = field(default_factory=lambda: np.empty((0, 3), dtype=np.int64))
    unit: ClassVar[str] = "samples"

    @property
    def where(self) -> str:
        return self.urls[0] if len(self.urls) == 1 else f"{self.urls[0]} ... {self.urls[-1]}"

    def select(self, rows: Tensor) -> Self:
        return replace(super().select(rows), places=self.places[rows.numpy()])

    def file(self, row: int) -> BytesIO:
        tar, start, size = self.places[row].tolist()
        problem, cause = "", None
        for wait in _WAITS:
            time.sleep(wait)
            try:
                system, path = url_to_fs(self.urls[tar])
                content = system.cat_file(path, start=start, end=start + size)
            except Exception as error:  # of the network or of the file system
                problem, cause = one_line(error), error
                continue
            if len(content) == size:
                return BytesIO(content)
            problem = (
                f"{size} bytes were requested and {len(content)} came: the file is shorter than it was, or the server "
                "does not send ranges of bytes"
            )
        raise UnreachableImage(f"{self.title(row)} cannot be read: {problem}") from cause

    def title(self, row: int) -> str:
        return f"{self.names[row]} in {self.urls[int(self.places[row, 0])]}"

    def first_rows(self) -> np.ndarray:
        return np.arange(len(self))  # two samples of one name are two

    def stamp(self) -> list[object]:
        return [list(self.versions), digest(torch.from_numpy(self.places))]


def webdataset(
    urls: str | Sequence[str],
    test_urls: str | Sequence[str] | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
    captions: bool = False,
    tokenizer: Tokenizer | str | None = None,
    min_count: int = 1,
    max_words: int | None = None,
    length: int = 32,
    **options: Unpack[Options],
) -> Splits:
    """The images in the tar files `urls`: paths or URLs, with ranges {000..099} and, if local, * in them.

    An image is the first file of a sample that Pillow reads, by its suffix; a class is its .cls, a number or a name,
    and a caption its .txt. A sample without .cls is unlabelled. http:// and https:// need aiohttp, and s3://, gs:// and
    others the package for them that `fsspec` names; the server must send ranges of bytes.

    test_urls      the tars of the test set; None: `test_fraction` of each class or, with captions, of all samples
    captions       True: the captions are read, as method=clip needs them
    tokenizer, min_count, max_words, length  as in `captions`
    options        as in `folder`. on_error="skip" also takes the whole samples of a damaged tar

    Raises InputError for tars that cannot be had, are compressed or are in both sets, and for samples without an image
    or a caption.
    """
    reading = Reading(**options)
    check_test_fraction(test_fraction)
    train, texts = _listed(expanded(urls), captions, reading)
    test, test_texts, held = None, list[str](), ""
    if test_urls is not None:
        test, test_texts = _listed(expanded(test_urls), captions, reading)
        if both := [url for url, version in zip(test.urls, test.versions, strict=True) if version in train.versions]:
            raise InputError(f"urls and test_urls both name {first_few(both)}: no test image may be trained on")
        test = _with_classes_of(train, test)
    elif test_fraction > 0 and (captions or (train.labels >= 0).any()):
        # with captions a part of all samples is held out, and otherwise of each class
        fit, rows = hold_out_test(torch.zeros_like(train.labels) if captions else train.labels, test_fraction, seed)
        if len(rows):
            test_texts, texts = ([texts[row] for row in part.tolist()] if captions else [] for part in (rows, fit))
            train, test, held = train.select(fit), train.select(rows), f", {test_fraction:g} of them held out"
    log.info(
        "data: %s; %d samples in %d tars%s to train on; %s",
        train.where, len(train), len(train.urls),
        f" of {len(train.classes)} classes" if train.classes else " with captions" if captions else ", unlabelled",
        f"{len(test)} to test on{held}" if test is not None else "no test set",
    )  # fmt: skip
    words = None
    if captions:
        words = tokenizer_for(texts, tokenizer, min_count, max_words)
        train = replace(train, text=words.encode(texts, length))
        test = None if test is None else replace(test, text=words.encode(test_texts, length))
    name = PurePosixPath(without_secrets(train.urls[0])).parent.name or "shards"
    return Splits(name, reading.load(train), None if test is None else reading.load(test), tokenizer=words)


def expanded(urls: str | Sequence[str]) -> list[str]:
    """The urls, with every range {000..099} written out and every * of a path replaced by the files that there are."""
    if not isinstance(urls, str):
        return [each for url in urls for each in expanded(url)]
    if found := re.search(r"\{(\d+)\.\.(\d+)\}", urls):
        first, last = found.groups()
        if int(first) > int(last):
            raise InputError(f"the range {found.group()} of {urls} is empty: the lower number comes first")
        numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        return [each for number in numbers for each in expanded(urls[: found.start()] + number + urls[found.end() :])]
    if "://" in urls:
        return [urls]
    path = str(Path(urls).expanduser())
    files = sorted(glob.glob(path)) if glob.has_magic(path) and not os.path.exists(path) else [path]
    if not files:
        raise InputError(f"there is no file {urls}")
    return files


def _listed(urls: list[str], captions: bool, reading: Reading) -> tuple[ShardImages, list[str]]:
    """The samples of the tars in their order, and their captions if these are wanted."""
    if twice := sorted({url for url in urls if urls.count(url) > 1}):
        raise InputError(f"urls names {first_few(twice)} twice")
    versions = in_threads(lambda tar: version_of(urls[tar]), len(urls), "looking for shards", block=1, unit="tar")
    folder = cache_folder(reading.cache)

    def index(tar: int) -> dict[str, Tensor]:
        return cached(folder, f"shards/{digest(_FORMAT, versions[tar])}", lambda: index_of(urls[tar]))

    entries = in_threads(index, len(urls), "indexing shards", block=1, unit="tar")
    of_url = zip(urls, entries, strict=True)
    if problems := [f"{url} ({text})" for url, entry in of_url for text in to_texts(entry["problem"])]:
        refuse_or_skip(f"{len(problems)} of {len(urls)} tars are damaged: {first_few(problems)}", reading.on_error)
    kept, places, labels, texts = list[np.ndarray](), list[np.ndarray](), list[np.ndarray](), list[str]()
    number: dict[str, int] = {}  # of each class, in the order in which they occur
    for tar, entry in enumerate(entries):
        whole = entry["places"].numpy()[:, 1] > 0  # [n]: it has an image
        if captions:
            whole &= np.array([text != "" for text in to_texts(entry["captions"])], dtype=bool)
            texts += compress(to_texts(entry["captions"]), whole)
        values = [number.setdefault(text, len(number)) if text else UNLABELLED for text in to_texts(entry["labels"])]
        labels.append(np.array(values, dtype=np.int64)[whole])
        places.append(np.insert(entry["places"].numpy()[whole], 0, tar, axis=1))
        kept.append(whole)

    def names(selected: list[np.ndarray]) -> Iterator[str]:
        for tar, entry, rows in zip(_tar_names(urls), entries, selected, strict=True):
            yield from (f"{tar}/{key}" for key in compress(to_texts(entry["keys"]), rows))

    if lost := sum(int((~whole).sum()) for whole in kept):
        some = first_few(list(names([~whole for whole in kept])))
        what = "no image or no caption" if captions else "no image"
        refuse_or_skip(f"{lost} of {sum(map(len, kept))} samples have {what}: {some}", reading.on_error)
    if not any(map(len, places)):
        raise InputError(f"no samples in {first_few(urls)}")
    classes = sorted(number, key=lambda text: (0, int(text), text) if text.isdecimal() else (1, 0, text))
    rank = {name: place for place, name in enumerate(classes)}
    new = np.array([*(rank[text] for text in number), UNLABELLED])  # the last is that of -1
    files = ShardImages(
        Path(),
        Names(names(kept)),
        torch.from_numpy(new[np.concatenate(labels)]),
        tuple(classes),
        threads=_REMOTE_THREADS if any("://" in url for url in urls) else 1,
        urls=tuple(urls),
        versions=tuple(versions),
        places=np.concatenate(places),
    )
    return files, texts


def _tar_names(urls: list[str]) -> list[str]:
    """The tars without their folders or, where two are then called the same, without the folder that all are in."""
    paths = [without_secrets(url) for url in urls]
    names = [PurePosixPath(path).name for path in paths]
    common = os.path.commonprefix(paths).rpartition("/")[0]  # noqa: RUF071 - URLs are no paths
    return names if len(set(names)) == len(names) else [path.removeprefix(f"{common}/") for path in paths]


def _with_classes_of(train: ShardImages, test: ShardImages) -> ShardImages:
    """The test images, labelled by the numbers of the training classes; those of other classes are unlabelled."""
    number = {name: place for place, name in enumerate(train.classes)}
    if unknown := [repr(name) for name in test.classes if name not in number]:
        log.warning("%d classes are only in the test set and do not count: %s", len(unknown), first_few(unknown))
    new = torch.tensor([*(number.get(name, UNLABELLED) for name in test.classes), UNLABELLED])
    return replace(test, labels=new[test.labels], classes=train.classes)
