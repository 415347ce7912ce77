"""The cache of decoded images: hits, keys, damage, and many processes at once."""

import functools
import multiprocessing
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import contrast.data.images.image_set
import contrast.data.store
from contrast.data.images import folder as images_folder

folder = functools.partial(images_folder.folder, test_fraction=0)  # one entry of the cache for each data set


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six images in a format without compression: all files are of one length."""
    for i in range(6):
        path = tmp_path / f"images/train/{'ab'[i % 2]}/{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files decoded so far."""
    seen: list[Path] = []
    real = contrast.data.images.image_set.decode

    def spy(path: Path, *args, **options):
        seen.append(path)
        return real(path, *args, **options)

    monkeypatch.setattr(contrast.data.images.image_set, "decode", spy)
    return seen


def tensors(cache: Path) -> list[Path]:
    return sorted((cache / "images").iterdir())


def test_second_start_opens_no_image(root: Path, tmp_path: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch):
    cache = tmp_path / "cache"
    first = folder(root, cache=cache).train
    assert len(decoded) == 7  # the first image tells the size
    decoded.clear()
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    second = folder(root, cache=cache).train
    assert decoded == []
    assert torch.equal(first.pixels, second.pixels)
    assert torch.equal(first.labels, second.labels)
    maps = Path("/proc/self/maps")
    if maps.exists():  # the file is mapped, so that processes share the memory
        assert str(tensors(cache)[0]) in maps.read_text()


def test_key_is_the_content(root: Path, tmp_path: Path, decoded: list[Path]):
    cache = tmp_path / "cache"
    first = folder(root, cache=cache).train.pixels
    moved = root.rename(tmp_path / "moved")
    for path in moved.rglob("*.bmp"):
        os.utime(path, ns=(1, 1))
    decoded.clear()
    assert torch.equal(folder(moved, cache=cache).train.pixels, first)
    assert len(decoded) == 1  # for its size
    assert len(tensors(cache)) == 1
    image = moved / "train/a/0.bmp"
    stat, other = image.stat(), np.zeros((4, 4, 3), dtype=np.uint8)
    Image.fromarray(other).save(image)
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert int(folder(moved, cache=cache).train.pixels[0].sum()) == 0
    image.rename(moved / "train/a/9.bmp")
    assert int(folder(moved, cache=cache).train.pixels[2].sum()) == 0
    assert len(tensors(cache)) == 3


def test_settings_have_files_of_their_own(root: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    shapes = {
        tuple(folder(root, cache=cache, **options).train.pixels.shape[1:])
        for _ in range(2)
        for options in ({}, {"image_size": 3}, {"channels": 1})
    }
    assert shapes == {(3, 4, 4), (3, 3, 3), (1, 4, 4)}
    assert len(tensors(cache)) == 3


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "garbage"])
def test_damaged_file_is_rebuilt(root: Path, tmp_path: Path, decoded: list[Path], damage: str):
    cache = tmp_path / "cache"
    first = folder(root, cache=cache).train.pixels.clone()
    (path,) = tensors(cache)
    content = path.read_bytes()
    bad = {
        "truncate": content[:-10],
        "flip": content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
        "empty": b"",
        "garbage": b"x" * 99,
    }
    path.unlink()
    path.write_bytes(bad[damage])
    with pytest.warns(UserWarning, match="is damaged"):
        assert torch.equal(folder(root, cache=cache).train.pixels, first)
    decoded.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(folder(root, cache=cache).train.pixels, first)
    assert decoded == []


def test_unwritable_cache_is_a_warning(root: Path, tmp_path: Path):
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    with pytest.warns(UserWarning, match="cannot write to the cache") as caught:
        assert len(folder(root, cache=blocker / "cache").train) == 6
    assert len(caught) == 1


def test_default_folder(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CONTRAST_CACHE", str(tmp_path / "here"))
    folder(root)
    assert len(tensors(tmp_path / "here")) == 1
    monkeypatch.delenv("CONTRAST_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    folder(root)
    assert len(tensors(tmp_path / ".cache/contrast")) == 1


def test_two_processes_at_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each process has written its part file before either moves it into place."""
    context = multiprocessing.get_context("fork")  # a fresh interpreter would spend seconds on importing torch
    both, results = context.Barrier(2, timeout=20), context.Queue()
    real = contrast.data.store.save_file

    def save_file(*args, **options):
        real(*args, **options)
        if "pixels" in args[0]:
            both.wait()

    def job() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            results.put(folder(root, cache=tmp_path / "cache").train.pixels.numpy().tobytes())

    monkeypatch.setattr(contrast.data.store, "save_file", save_file)
    jobs = [context.Process(target=job) for _ in range(2)]
    for process in jobs:
        process.start()
    found = [results.get(timeout=20) for _ in jobs]
    for process in jobs:
        process.join()
    assert [process.exitcode for process in jobs] == [0, 0]
    monkeypatch.undo()
    assert found == [folder(root, cache=tmp_path / "other").train.pixels.numpy().tobytes()] * 2
    assert len(tensors(tmp_path / "cache")) == 1  # and no part file
