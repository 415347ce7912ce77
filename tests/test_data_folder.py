"""Folders of images: what is found in them, how it is decoded, and every way in which they can be wrong."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from contrast.data.images.decode import UnreadableImage, decode
from contrast.data.images.folder import folder
from contrast.data.images.image_set import ImageFiles, Images, Splits
from contrast.data.loader import Batches
from contrast.errors import InputError
from contrast.evaluation.features import features


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTRAST_CACHE", str(tmp_path / "cache"))


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> np.ndarray:
    """Write a random picture of `size` (width, height) and return its array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(values).save(path)
    return values


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, four training and two test images of 6 x 5."""
    for i, name in enumerate(
        [
            "train/cat/b.png",
            "train/cat/a.PNG",
            "train/ant/x/deep.png",
            "train/ant/z.bmp",
            "test/cat/q.png",
            "test/ant/r.png",
        ]
    ):
        picture(tmp_path / "images" / name, seed=i)
    (tmp_path / "images/train/cat/.hidden.png").write_bytes(b"no image")
    picture(tmp_path / "images/train/.checkpoints/a.png")
    (tmp_path / "images/train/cat/notes.txt").write_text("no image")
    return tmp_path / "images"


def memory(images: Any) -> Images:
    assert isinstance(images, Images)
    return images


def test_splits_classes_and_order(root: Path):
    splits = folder(root)
    train, test = memory(splits.train), memory(splits.test)
    assert splits.name == "images"
    assert train.classes == test.classes == ("ant", "cat")
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert test.labels.tolist() == [0, 1]
    names = ["ant/x/deep.png", "ant/z.bmp", "cat/a.PNG", "cat/b.png"]
    for image, name in zip(train.pixels, names, strict=True):
        expected = np.asarray(Image.open(root / "train" / name)).transpose(2, 0, 1)
        np.testing.assert_array_equal(image.numpy(), expected)


def test_val_stands_for_test_and_train_alone_has_none(root: Path):
    (root / "test").rename(root / "val")
    assert len(memory(folder(root).test)) == 2
    (root / "val").rename(root / "other")
    assert folder(root).test is None


@pytest.mark.parametrize("names", [["a.png", "b.png"], ["cat/a.png", "cat/b.png"], ["train/a.png", "train/b.png"]])
def test_unlabelled(tmp_path: Path, names: list[str]):
    for i, name in enumerate(names):
        picture(tmp_path / "flat" / name, seed=i)
    if names[0].startswith("cat"):
        with pytest.warns(UserWarning, match="no train/ folder: its 2 images are taken as unlabelled"):
            splits = folder(tmp_path / "flat")
    else:
        splits = folder(tmp_path / "flat")
    assert splits.train.labels.tolist() == [-1, -1]
    assert splits.train.classes == ()
    assert splits.test is None


def test_greyscale_and_image_size(root: Path):
    picture(root / "train/cat/large.png", size=(40, 20))
    train = memory(folder(root, image_size=4, channels=1).train)
    assert train.pixels.shape == (5, 1, 4, 4)
    with Image.open(root / "train/cat/large.png") as image:  # 40 x 20 -> 8 x 4 -> the four columns in the middle
        expected = image.convert("L").resize((8, 4), Image.Resampling.BILINEAR).crop((2, 0, 6, 4))
    np.testing.assert_array_equal(train.pixels[4, 0].numpy(), np.asarray(expected))


def test_orientation_depth_and_transparency(tmp_path: Path):
    values = picture(tmp_path / "upright.png", size=(6, 4))
    turned = Image.fromarray(values)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be shown turned clockwise by 90 degrees
    turned.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(decode(tmp_path / "turned.png"), np.rot90(values, -1).transpose(2, 0, 1))
    deep = np.array([[0, 257, 65535], [514, 128, 129]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert decode(tmp_path / "deep.png", channels=1)[0].tolist() == [[0, 1, 255], [2, 0, 1]]
    Image.fromarray(np.dstack([values, values[..., 0]])).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(decode(tmp_path / "alpha.png"), values.transpose(2, 0, 1))
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UnreadableImage, match="32-bit"):
        decode(tmp_path / "float.tif")


def test_sizes_that_differ_are_named(root: Path):
    picture(root / "train/cat/c.png", size=(7, 9))
    with pytest.raises(InputError, match=r"deep\.png is 6 x 5, .*c\.png is 7 x 9; give data\.image_size"):
        folder(root)
    (root / "train/cat/c.png").unlink()
    for path in (root / "test").rglob("*.png"):
        picture(path, size=(3, 2))
    with pytest.raises(InputError, match=r"\(5, 6\) to train and \(2, 3\) to test"):
        folder(root)
    assert memory(folder(root, image_size=2).test).pixels.shape == (2, 3, 2, 2)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty", "broken link"])
def test_corrupt_image_is_named_or_skipped_and_counted(root: Path, damage: str):
    bad = root / "train/cat/a.PNG"
    content = {"garbage": b"what?", "truncated": bad.read_bytes()[:60], "empty": b""}
    bad.unlink()
    if damage == "broken link":
        bad.symlink_to(root / "nowhere")
    else:
        bad.write_bytes(content[damage])
    for _ in range(2):  # also when the cache knows
        with pytest.warns(UserWarning, match=r"1 of 4 files .* cannot be read: cat/a\.PNG"):
            train = memory(folder(root, on_error="skip").train)
        assert train.labels.tolist() == [0, 0, 1]
        with pytest.raises(UnreadableImage, match=r"a\.PNG.*data\.on_error=skip"):
            folder(root)
    with Image.open(root / "train/cat/b.png") as image:
        np.testing.assert_array_equal(train.pixels[2].numpy(), np.asarray(image).transpose(2, 0, 1))


def test_first_and_every_image_corrupt(root: Path):
    (root / "train/ant/x/deep.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 of 4"):
        assert len(folder(root, on_error="skip").train) == 3
    for path in (root / "train").rglob("[a-z]*.*"):
        path.write_bytes(b"")
    with pytest.raises(UnreadableImage, match="none of the 4"):
        folder(root, on_error="skip")


def test_missing_empty_and_mixed_folders(root: Path, tmp_path: Path):
    with pytest.raises(InputError, match="nothere does not exist"):
        folder(tmp_path / "nothere")
    with pytest.raises(InputError, match="not a folder"):
        folder(root / "train/cat/b.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images"):
        folder(tmp_path / "empty")
    (tmp_path / "half/test").mkdir(parents=True)
    with pytest.raises(InputError, match="test/ but no train/"):
        folder(tmp_path / "half")
    picture(root / "train/stray.png")
    with pytest.raises(InputError, match=r"1 images of .* are in no class folder.*stray\.png"):
        folder(root)


def test_classes_that_differ(root: Path):
    picture(root / "train/bee/a.png")
    picture(root / "test/wasp/a.png")
    with pytest.raises(InputError, match="bee only in train, wasp only in test"):
        folder(root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "raise or skip, not 'ignore'"),
        ({"channels": 2}, "not 2"),
        ({"image_size": 0}, "not 0"),
        ({"memory_limit_gb": 0.0}, "give image_size"),
    ],
)
def test_options_out_of_range(root: Path, options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        folder(root, **options)


def large(root: Path, **options: Any) -> ImageFiles:
    images = folder(root, image_size=4, memory_limit_gb=0.0, **options).train
    assert isinstance(images, ImageFiles)
    return images


def test_over_the_memory_limit_is_the_same_data(root: Path):
    expected, found = memory(folder(root, image_size=4).train), large(root)
    assert (len(found), found.channels, found.size, found.classes) == (4, 3, 4, ("ant", "cat"))
    rows = torch.tensor([3, 0, 0])
    for images in (expected, expected.select(torch.arange(4))):
        for a, b in zip(images.take(rows)[:3], found.take(rows)[:3], strict=True):
            assert torch.equal(a, b)
    part = found.select(torch.tensor([2, 1]))
    assert torch.equal(part.take(torch.tensor([0, 1]))[0], expected.pixels[[2, 1]])
    assert part.labels.tolist() == [1, 0]
    assert found.statistics()[0].tolist() == [0.485, 0.456, 0.406]
    assert [len(s) for s in large(root, channels=1).statistics()] == [1, 1]
    with pytest.raises(InputError, match="only in memory"):
        _ = Splits("x", found, None, found).pretrain


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_image_over_the_memory_limit(root: Path, workers: int):
    (root / "train/cat/a.PNG").write_bytes(b"what?")
    with pytest.raises(UnreadableImage) as caught:
        list(Batches(large(root), 2, seed=0, workers=workers))
    assert "a.PNG" in str(caught.value)
    assert "\n" not in str(caught.value)
    for _ in range(2):  # also when the cache knows
        with pytest.warns(UserWarning, match=r"skipped: 1 of 4 files .* cannot be read: cat/a\.PNG"):
            images = large(root, on_error="skip")
        expected = memory(folder(root, on_error="skip", image_size=4).train)
        batches = list(Batches(images, 2, seed=0, shuffle=False, workers=workers))
        assert torch.cat([batch.index for batch in batches]).tolist() == [0, 1, 2]
        assert torch.equal(torch.cat([batch.pixels for batch in batches]), expected.pixels)
        assert images.labels.tolist() == expected.labels.tolist() == [0, 0, 1]


@pytest.mark.filterwarnings("ignore:skipped")
def test_no_image_is_evaluated_under_the_label_of_another(root: Path):
    (root / "test/ant/r.png").write_bytes(b"what?")
    images = folder(root, image_size=4, on_error="skip", memory_limit_gb=0.0).test
    assert isinstance(images, ImageFiles)
    measured = features(lambda pixels: pixels.flatten(1).float(), images)
    expected = memory(folder(root, image_size=4, on_error="skip").test)
    assert images.labels.tolist() == expected.labels.tolist() == [1]
    assert torch.equal(measured, expected.pixels.flatten(1).float())


@pytest.mark.parametrize("workers", [0, 1])
def test_image_that_is_damaged_while_training(root: Path, workers: int):
    """Another image takes its place in a training batch, with its own label; in what is measured none does."""
    images = large(root, on_error="skip")
    (root / "train/cat/a.PNG").write_bytes(b"what?")
    with pytest.warns(UserWarning, match=r"a\.PNG.*: the next image takes its place in this batch"):
        batch = images.take(torch.tensor([1, 2]))
    assert (batch.index.tolist(), batch.labels.tolist()) == ([1, 3], [0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shuffled = list(Batches(images, 4, seed=0, workers=workers))
    assert sorted(shuffled[0].index.tolist()) == [0, 1, 3, 3]
    with pytest.raises(UnreadableImage, match=r"a\.PNG"):
        list(Batches(images, 2, seed=0, shuffle=False, workers=workers))
