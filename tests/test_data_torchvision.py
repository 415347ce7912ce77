"""torchvision's data sets, from tiny files in their own formats."""

import hashlib
import pickle
import struct
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torchvision import datasets

from contrast.data.images import torchvision_sets
from contrast.data.images.image_set import Images, Splits
from contrast.errors import InputError

CONF = Path(__file__).parents[1] / "conf" / "data"
rng = np.random.default_rng(0)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, dataset: Any, classes: int) -> dict[str, Any]:
    """Four training and two test images; the checksums that torchvision expects are set to those of the files."""
    base = root / dataset.base_folder
    base.mkdir(parents=True)
    key = "labels" if classes == 10 else "fine_labels"
    pixels, labels = rng.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8), [3, 0, classes - 1, 2, 1, 3]
    for name, part in (("train", slice(0, 4)), ("test", slice(4, 6))):
        entry = {"data": pixels[part].reshape(-1, 3072), key: labels[part]}
        (base / name).write_bytes(pickle.dumps(entry))
        monkeypatch.setattr(dataset, f"{name}_list", [[name, md5(base / name)]])
    meta = {"filename": "meta", "key": dataset.meta["key"]}
    (base / "meta").write_bytes(pickle.dumps({meta["key"]: [f"class {i}" for i in range(classes)]}))
    monkeypatch.setattr(dataset, "meta", meta | {"md5": md5(base / "meta")})
    return {"pixels": pixels, "labels": labels, "train": 4, "classes": tuple(f"class {i}" for i in range(classes))}


def write_mnist(root: Path, monkeypatch: pytest.MonkeyPatch, dataset: Any, classes: tuple[str, ...]) -> dict[str, Any]:
    raw = root / dataset.__name__ / "raw"
    raw.mkdir(parents=True)
    pixels, labels = rng.integers(0, 256, (5, 1, 28, 28), dtype=np.uint8), [7, 0, 9, 1, 7]
    for name, part in (("train", slice(0, 3)), ("t10k", slice(3, 5))):
        some = pixels[part]
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, len(some), 28, 28) + some.tobytes())
        some_labels = bytes(labels[part])
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(some_labels)) + some_labels)
    return {"pixels": pixels, "labels": labels, "train": 3, "classes": classes}


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch, *_: Any) -> dict[str, Any]:
    root.mkdir(parents=True, exist_ok=True)
    pixels, labels = rng.integers(0, 256, (5, 3, 32, 32), dtype=np.uint8), [0, 9, 1, 5, 0]
    known = {}
    for name, part in (("train", slice(0, 3)), ("test", slice(3, 5))):
        path = root / f"{name}_32x32.mat"
        stored = np.array([label or 10 for label in labels[part]], dtype=np.uint8)[:, None]  # SVHN calls a nought 10
        scipy.io.savemat(path, {"X": pixels[part].transpose(2, 3, 1, 0), "y": stored})
        known[name] = ["", path.name, md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", known)
    return {"pixels": pixels, "labels": labels, "train": 3, "classes": tuple("0123456789")}


CASES: dict[str, Callable[[Path, pytest.MonkeyPatch], dict[str, Any]]] = {
    "cifar10": lambda root, patch: write_cifar(root, patch, datasets.CIFAR10, 10),
    "cifar100": lambda root, patch: write_cifar(root, patch, datasets.CIFAR100, 100),
    "mnist": lambda root, patch: write_mnist(root, patch, datasets.MNIST, tuple("0123456789")),
    "fashion_mnist": lambda root, patch: write_mnist(
        root, patch, datasets.FashionMNIST, tuple(datasets.FashionMNIST.classes)
    ),
    "svhn": write_svhn,
}


def read(name: str, **options: Any) -> Splits:
    """As Hydra reads it: through conf/data; without the exception that Hydra puts around ours."""
    try:
        with initialize_config_dir(str(CONF.parent), version_base="1.3"):
            node = compose(f"data/{name}").data
        OmegaConf.set_struct(node, False)
        return instantiate(OmegaConf.merge(node, options))
    except InstantiationException as error:
        raise error.__cause__ or error from None


@pytest.mark.parametrize("name", CASES)
def test_reads_the_format(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    facts = CASES[name](tmp_path, monkeypatch)
    splits = read(name, root=str(tmp_path))
    assert splits.name == name
    border = facts["train"]
    for images, part in ((splits.train, slice(0, border)), (splits.test, slice(border, None))):
        assert isinstance(images, Images)
        np.testing.assert_array_equal(images.pixels.numpy(), facts["pixels"][part])
        assert images.labels.tolist() == facts["labels"][part]
        assert images.classes == facts["classes"]


def test_stl10_with_its_unlabelled_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = tmp_path / "stl10_binary"
    base.mkdir()
    pixels = rng.integers(0, 256, (9, 3, 96, 96), dtype=np.uint8)
    parts = {"train": slice(0, 2), "test": slice(2, 4), "unlabeled": slice(4, 9)}
    for name, part in parts.items():
        (base / f"{name}_X.bin").write_bytes(pixels[part].transpose(0, 1, 3, 2).tobytes())  # stored column by column
    (base / "train_y.bin").write_bytes(bytes([10, 1]))  # from 1
    (base / "test_y.bin").write_bytes(bytes([4, 2]))
    for which, names in (("train", ("train_X", "train_y", "unlabeled_X")), ("test", ("test_X", "test_y"))):
        monkeypatch.setattr(datasets.STL10, f"{which}_list", [[f"{n}.bin", md5(base / f"{n}.bin")] for n in names])
    splits = read("stl10", root=str(tmp_path))
    assert isinstance(splits.test, Images)
    assert isinstance(splits.unlabelled, Images)
    for images, name in ((splits.train, "train"), (splits.test, "test"), (splits.unlabelled, "unlabeled")):
        np.testing.assert_array_equal(images.pixels.numpy(), pixels[parts[name]])
    assert splits.train.labels.tolist() == [9, 0]
    assert splits.test.labels.tolist() == [3, 1]
    assert splits.unlabelled.labels.tolist() == [-1] * 5
    assert (splits.train.classes[9], len(splits.pretrain)) == ("truck", 7)
    assert torch.equal(splits.pretrain.labels[:2], splits.train.labels)


@pytest.mark.parametrize("name", [*CASES, "stl10"])
def test_missing_data_says_where_and_how(name: str, tmp_path: Path):
    with pytest.raises(InputError) as caught:
        read(name, root=str(tmp_path / "nothing"))
    for part in (name, str(tmp_path / "nothing"), "train/", "data.download=true"):
        assert part in str(caught.value)


def test_damaged_files_are_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_cifar(tmp_path, monkeypatch, datasets.CIFAR10, 10)
    (tmp_path / "cifar-10-batches-py/test").write_bytes(b"half")
    with pytest.raises(InputError, match="cifar-10-batches-py is damaged or incomplete"):
        read("cifar10", root=str(tmp_path))


def test_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def offline(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network\nat all")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(InputError, match=r"cannot download cifar10 to .*no network at all") as caught:
        read("cifar10", root=str(tmp_path), download=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "channels"), [("cifar10", 3), ("mnist", 1)])
def test_folder_of_images_in_its_place(name: str, channels: int, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for split, value in (("train", 10), ("test", 20)):
        path = tmp_path / "images" / split / "cat" / "a.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(path)
    with caplog.at_level("INFO", logger=torchvision_sets.__name__):
        splits = read(name, root=str(tmp_path / "images"), on_error="skip", cache=str(tmp_path / "cache"))
    assert (splits.name, splits.train.channels, splits.train.classes) == (name, channels, ("cat",))
    assert isinstance(splits.test, Images)
    assert int(splits.test.pixels.min()) == 20
    assert f"{name}: reading the folder of images" in caplog.text


IMAGES = sorted(path for path in CONF.glob("*.yaml") if path.stem not in ("corpus", "docstrings", "hf"))
PLACES = {"captions": ("file", "captions.csv"), "webdataset": ("urls", "0.tar")}  # the argument that names the data


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_every_data_group_names_a_function_and_its_arguments(path: Path):
    if path.stem.startswith("digits"):
        assert len(read(path.stem).train) == 1437
        return
    key, file = PLACES.get(path.stem, ("root", ""))
    with pytest.raises(InputError, match="/no/such/place"):
        read(path.stem, **{key: f"/no/such/place/{file}"})
