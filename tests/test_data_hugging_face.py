"""Data sets of the library `datasets`, from local folders of parquet: no network."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from contrast.data.images.decode import UnreadableImage
from contrast.data.images.hugging_face import hugging_face
from contrast.data.images.image_set import ImageFiles, Images
from contrast.data.loader import Batches
from contrast.data.store import digest
from contrast.errors import InputError
from contrast.evaluation.features import content

datasets = pytest.importorskip("datasets", reason="pip install 'contrast-learning[datasets]'")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def encoded(seed: int, size: int = 6) -> dict[str, Any]:
    """A random image as a PNG, as the library stores it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write(folder: Path, split: str, images: list[dict[str, Any]], labels: list[Any], label: Any) -> None:
    features = datasets.Features({"picture": datasets.Image(), "label": label})
    rows = datasets.Dataset.from_dict({"picture": images, "label": labels}, features=features)
    folder.mkdir(exist_ok=True)
    rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")


CLASSES = datasets.ClassLabel(names=["cat", "ant"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "set", "train", [encoded(i) for i in range(20)], [i % 2 for i in range(20)], CLASSES)
    write(tmp_path / "set", "test", [encoded(i) for i in range(20, 24)], [0, 1, -1, 1], CLASSES)
    return tmp_path / "set"


def test_a_local_folder_of_parquet(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        splits = hugging_face(str(root))
    assert "20 images of 2 classes to train on; 4 to test on (test); columns picture and label" in caplog.text
    assert isinstance(splits.train, Images)
    assert splits.name == "set"
    assert splits.train.classes == ("cat", "ant")
    assert splits.train.labels.tolist() == [i % 2 for i in range(20)]
    assert splits.test is not None
    assert splits.test.labels.tolist() == [0, 1, -1, 1]
    expected = np.random.default_rng(3).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    assert torch.equal(splits.train.pixels[3], torch.from_numpy(expected).permute(2, 0, 1))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_set_over_the_limit_stays_on_disk(root: Path, workers: int) -> None:
    memory = hugging_face(str(root), image_size=4).train
    disk = hugging_face(str(root), image_size=4, memory_limit_gb=0.0).train
    assert isinstance(disk, ImageFiles)
    assert isinstance(memory, Images)
    batches = list(Batches(disk, 8, seed=0, shuffle=False, workers=workers))
    assert torch.equal(torch.cat([batch.pixels for batch in batches]), memory.pixels)
    part = disk.select(torch.tensor([7, 2]))
    assert torch.equal(part.take(torch.tensor([0, 1])).pixels, memory.pixels[[7, 2]])


def test_without_a_test_split_a_part_is_held_out(tmp_path: Path) -> None:
    words = ["dog", "cat"] * 10
    write(tmp_path / "set", "train", [encoded(i) for i in range(20)], words, datasets.Value("string"))
    splits = hugging_face(str(tmp_path / "set"), test_fraction=0.2)
    assert splits.train.classes == ("cat", "dog")
    assert splits.test is not None
    assert splits.test.labels.bincount().tolist() == [2, 2]
    assert splits.train.labels.bincount().tolist() == [8, 8]
    assert hugging_face(str(tmp_path / "set"), test_fraction=0).test is None


def test_the_only_image_of_a_class_is_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "set", "train", [encoded(i) for i in range(5)], list("aabbc"), datasets.Value("string"))
    splits = hugging_face(str(tmp_path / "set"))
    assert splits.test is not None
    assert splits.test.labels.tolist() == [0, 1]
    assert splits.train.labels.tolist() == [0, 1, 2]


def test_features_of_two_columns_are_not_mixed(tmp_path: Path) -> None:
    images = datasets.Features({"a": datasets.Image(), "b": datasets.Image()})
    rows = {"a": [encoded(0), encoded(1)], "b": [encoded(2), encoded(3)]}
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows, images).to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
    options = {"image_size": 4, "memory_limit_gb": 0.0}
    first, second = (hugging_face(str(tmp_path / "set"), image_column=name, **options).train for name in rows)
    assert digest(content(first)) != digest(content(second))


def test_damaged_rows_are_named_or_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = [encoded(0), {"bytes": b"what?", "path": None}, encoded(2)]
    write(tmp_path / "set", "train", images, [0, 1, 1], CLASSES)
    with pytest.raises(UnreadableImage, match=r"row 1 of .*its data is not a readable image.*on_error=skip"):
        hugging_face(str(tmp_path / "set"), test_fraction=0)
    assert hugging_face(str(tmp_path / "set"), test_fraction=0, on_error="skip").train.labels.tolist() == [0, 1]
    assert "skipped: 1 of 3 rows" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_split": "training"}, "has no split training; its splits are train, test"),
        ({"test_split": "dev"}, "has no split dev"),
        ({"image_column": "image"}, "no column image; its columns are picture, label"),
        ({"label_column": "class"}, "no column class"),
    ],
)
def test_what_it_lacks_is_named(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        hugging_face(str(root), **options)


def test_what_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any) -> None:
        raise ConnectionError("no route\nto the host")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(InputError, match="data set some/where cannot be had: no route to the host"):
        hugging_face("some/where")


@pytest.mark.parametrize("several", [False, True])
def test_captions_of_a_column_one_or_several_of_an_image(tmp_path: Path, several: bool) -> None:
    text = datasets.Value("string")
    features = datasets.Features({"picture": datasets.Image(), "text": datasets.Sequence(text) if several else text})
    columns = {
        "picture": [encoded(i) for i in range(10)],
        "text": [[f"number {i}", f"picture {i}"] if several else f"number {i}" for i in range(10)],
    }
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "set" / "train-0.parquet")
    splits = hugging_face(str(tmp_path / "set"), caption_column="text", min_count=1, cache=tmp_path / "cache")
    train, words = splits.train, splits.tokenizer
    assert isinstance(train, Images)
    assert words is not None
    assert train.text is not None
    assert len(train) == 9 * (1 + several)
    assert splits.test is not None
    assert len(splits.test) == 1 + several
    for pixels, caption in zip(train.pixels, words.decode(train.text), strict=True):
        with Image.open(io.BytesIO(encoded(int(caption.split()[1]))["bytes"])) as image:
            assert torch.equal(pixels.permute(1, 2, 0), torch.from_numpy(np.array(image)))
    with pytest.raises(InputError, match="no column words; its columns are picture, text"):
        hugging_face(str(tmp_path / "set"), caption_column="words")
