"""Folders of images: what is found in them, how it is decoded, and every way in which they can be wrong."""

import csv
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def logged(caplog: pytest.LogCaptureFixture, match: str) -> Iterator[None]:
    """A line that matches is logged in the block."""
    caplog.clear()
    with caplog.at_level("INFO", logger="contrast"):
        yield
    assert any(re.search(match, message) for message in caplog.messages), caplog.messages


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
    assert train.names is not None
    assert [name.removeprefix("train/") for name in train.names] == names
    part = train.select(torch.tensor([3, 0])).to("cpu")
    assert part.names is not None
    assert [Path(name).name for name in part.names] == ["b.png", "deep.png"]


def test_val_stands_for_test_and_train_alone_has_none(root: Path):
    (root / "test").rename(root / "val")
    assert len(memory(folder(root).test)) == 2
    (root / "val").rename(root / "other")
    assert folder(root, test_fraction=0).test is None


@pytest.mark.parametrize("names", [["a.png", "b.png"], ["cat/a.png", "cat/b.png"], ["train/a.png", "train/b.png"]])
def test_unlabelled(tmp_path: Path, names: list[str], caplog: pytest.LogCaptureFixture):
    for i, name in enumerate(names):
        picture(tmp_path / "flat" / name, seed=i)
    with logged(caplog, "2 images, unlabelled to train on"):
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
def test_corrupt_image_is_named_or_skipped_and_counted(root: Path, damage: str, caplog: pytest.LogCaptureFixture):
    bad = root / "train/cat/a.PNG"
    content = {"garbage": b"what?", "truncated": bad.read_bytes()[:60], "empty": b""}
    bad.unlink()
    if damage == "broken link":
        bad.symlink_to(root / "nowhere")
    else:
        bad.write_bytes(content[damage])
    for _ in range(2):  # also when the cache knows
        with logged(caplog, r"1 of 4 files .* cannot be read: train/cat/a\.PNG; .*a\.PNG is not a readable image \("):
            train = memory(folder(root, on_error="skip").train)
        assert train.labels.tolist() == [0, 0, 1]
        with pytest.raises(UnreadableImage, match=r"a\.PNG.*data\.on_error=skip"):
            folder(root)
    with Image.open(root / "train/cat/b.png") as image:
        np.testing.assert_array_equal(train.pixels[2].numpy(), np.asarray(image).transpose(2, 0, 1))


def test_first_and_every_image_corrupt(root: Path, caplog: pytest.LogCaptureFixture):
    (root / "train/ant/x/deep.png").write_bytes(b"")
    with logged(caplog, "1 of 4"):
        assert len(folder(root, on_error="skip").train) == 3
    for path in (root / "train").rglob("[a-z]*.*"):
        path.write_bytes(b"")
    with pytest.raises(UnreadableImage, match=r"none of the 4 .*deep\.png is not a readable image \(cannot identify"):
        folder(root, on_error="skip")


def test_missing_empty_and_mixed_folders(root: Path, tmp_path: Path):
    with pytest.raises(InputError, match="nothere does not exist"):
        folder(tmp_path / "nothere")
    with pytest.raises(InputError, match="not a folder"):
        folder(root / "train/cat/b.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images"):
        folder(tmp_path / "empty")
    picture(tmp_path / "half/test/a.png")
    with pytest.raises(InputError, match="images to test on \\(1\\) but none to train on, no train/"):
        folder(tmp_path / "half")


def test_an_image_between_the_class_folders_is_unlabelled_and_named(root: Path, caplog: pytest.LogCaptureFixture):
    picture(root / "train/stray.png")
    with logged(caplog, r"1 images to train on are in no class and unlabelled: .*stray\.png"):
        assert folder(root).train.labels.tolist() == [0, 0, 1, 1, -1]


def test_classes_that_differ(root: Path, caplog: pytest.LogCaptureFixture):
    """What has the classes of both is evaluated, and the rest is named."""
    picture(root / "train/bee/a.png")
    picture(root / "test/wasp/a.png")
    with logged(
        caplog, "1 image to test on of classes without training images: 'wasp'; 1 classes only in train: 'bee'"
    ):
        splits = folder(root)
    assert splits.train.classes == splits.test.classes == ("ant", "bee", "cat")
    assert splits.test.labels.tolist() == [0, 2]
    for name in ("ant", "cat"):
        (root / "test" / name).rename(root / name)
    with pytest.raises(InputError, match="have none in common"):
        folder(root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "raise or skip, not 'ignore'"),
        ({"channels": 0}, "not 0"),
        ({"range": [1, 1]}, r"not \[1, 1\]"),
        ({"test_fraction": 1.0}, r"must be in \[0, 1\), not 1\.0"),
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


def test_no_file_is_looked_at_before_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(200):
        path = tmp_path / f"set/{'ab'[i % 2]}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i, i, i)).save(path)
    seen: list[str] = []
    for name in ("stat", "lstat"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda path, *rest, real=real, **more: (seen.append(str(path)), real(path, *rest, **more))[1]
        )
    assert len(large(tmp_path / "set", test_fraction=0)) == 200
    assert len({path for path in seen if path.endswith(".png")}) <= 16  # whose depth is looked at


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_image_over_the_memory_limit(root: Path, workers: int, caplog: pytest.LogCaptureFixture):
    (root / "train/cat/a.PNG").write_bytes(b"what?")
    with pytest.raises(UnreadableImage) as caught:
        list(Batches(large(root), 2, seed=0, workers=workers))
    assert "a.PNG" in str(caught.value)
    assert "\n" not in str(caught.value)
    for _ in range(2):  # also when the cache knows
        with logged(caplog, r"skipped: 1 of 4 files .* cannot be read: train/cat/a\.PNG"):
            images = large(root, on_error="skip")
        expected = memory(folder(root, on_error="skip", image_size=4).train)
        batches = list(Batches(images, 2, seed=0, shuffle=False, workers=workers))
        assert torch.cat([batch.index for batch in batches]).tolist() == [0, 1, 2]
        assert torch.equal(torch.cat([batch.pixels for batch in batches]), expected.pixels)
        assert images.labels.tolist() == expected.labels.tolist() == [0, 0, 1]


def test_no_image_is_evaluated_under_the_label_of_another(root: Path):
    (root / "test/ant/r.png").write_bytes(b"what?")
    images = folder(root, image_size=4, on_error="skip", memory_limit_gb=0.0).test
    assert isinstance(images, ImageFiles)
    measured = features(lambda pixels: pixels.flatten(1).float(), images)
    expected = memory(folder(root, image_size=4, on_error="skip").test)
    assert images.labels.tolist() == expected.labels.tolist() == [1]
    assert torch.equal(measured, expected.pixels.flatten(1).float())


def test_a_dangling_link_is_named_with_its_target(root: Path):
    (root / "train/cat/z.png").symlink_to("/nowhere/z.png")
    with pytest.raises(UnreadableImage, match=r"cat/z\.png .*is a link to /nowhere/z\.png, which does not exist"):
        folder(root, image_size=4)


@pytest.mark.parametrize("workers", [0, 1])
def test_image_that_is_damaged_while_training(root: Path, workers: int, caplog: pytest.LogCaptureFixture):
    """Another image takes its place in a training batch, with its own label; in what is measured none does."""
    images = large(root, on_error="skip")
    (root / "train/cat/a.PNG").write_bytes(b"what?")
    with logged(caplog, r"a\.PNG.*: the next image takes its place in this batch"):
        batch = images.take(torch.tensor([1, 2]))
    assert (batch.index.tolist(), batch.labels.tolist()) == ([1, 3], [0, 1])
    shuffled = list(Batches(images, 4, seed=0, workers=workers))
    assert sorted(shuffled[0].index.tolist()) == [0, 1, 3, 3]
    with pytest.raises(UnreadableImage, match=r"a\.PNG"):
        list(Batches(images, 2, seed=0, shuffle=False, workers=workers))


# --- layouts: the files there are, how many are trained and tested on, the classes, and what the line has to mention

LAYOUTS: dict[str, tuple[list[str], int, int, tuple[str, ...], str]] = {
    "classes": (
        [f"{name}/{i}.png" for name in "ab" for i in range(10)],
        *(18, 2, ("a", "b")),
        "18 images of 2 classes to train on; 2 images, 0.1 of each class, held out of them to test on",
    ),
    "train alone": ([f"train/{name}/{i}.png" for name in "ab" for i in range(5)], 8, 2, ("a", "b"), "2 images, 0.1"),
    "any case of letters": (
        ["Train/a/1.JPG", "Train/b/1.JPG", "VALID/a/1.JPG", "VALID/b/1.JPG"],
        *(2, 2, ("a", "b")),
        "2 images to test on",
    ),
    "validation beside test": (
        ["train/a/1.png", "train/b/1.png", "test/a/1.png", "validation/a/1.png", "validation/b/1.png"],
        *(2, 1, ("a", "b")),
        "passed over 2 images of the validation split: the test split is evaluated; 1 classes only in train: 'b'",
    ),
    "flat test": (
        ["train/a/1.png", "train/a/2.png", "train/b/1.png", "train/b/2.png", "test/1.png", "test/2.png", "test/3.png"],
        *(2, 2, ("a", "b")),
        "passed over 3 images to test on that have no label",
    ),
    "flat splits": (
        ["train/1.png", "train/2.png", "val/1.png"],
        2,
        1,
        (),
        "2 images, unlabelled to train on; 1 image to",
    ),
    "splits in classes": (
        ["a/train/1.png", "a/test/1.png", "b/train/1.png", "b/train/2.png", "b/test/1.png", "b/masks/1.png"],
        *(3, 2, ("a", "b")),
        "passed over 1 image beside the training images",
    ),
    "test beside classes": (
        ["a/1.png", "b/1.png", "test/a/1.png", "test/b/1.png"],
        *(2, 2, ("a", "b")),
        "2 images of 2 classes to train on; 2 images to test on",
    ),
    "a class called test": (
        ["train/test/1.png", "train/b/1.png", "val/test/1.png", "val/b/1.png"],
        *(2, 2, ("b", "test")),
        "2 images to test on",
    ),
    "one class": (["a/1.png", "a/2.png"], 2, 0, (), "one class alone, 'a', is no label"),
    "one image of a class": (["a/1.png", "a/2.png", "b/1.png"], 2, 1, ("a", "b"), "1 image, 0.1 of each class"),
    "nothing beside images": (
        ["a/1.png", "b/1.png", "c/notes.txt", "a/x.svg", "a/y.txt", "b/noise", ".DS_Store"],
        *(2, 0, ("a", "b")),
        "passed over files that are no images: 1 without a suffix, 1 .svg, 2 .txt; "
        "passed over 1 hidden files and folders; 1 folders hold no image: .*/c",
    ),
    "what Pillow opens": (
        [f"a/1.{end}" for end in ("png", "JPG", "jpe", "jfif", "tga", "pcx", "dds", "ico", "jp2", "webp", "ppm")],
        *(10, 1, ()),
        "10 images, unlabelled to train on; 1 image, held out of them to test on",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture):
    names, train, test, classes, mention = LAYOUTS[layout]
    for i, name in enumerate(names):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".txt", ".svg", "") or path.name.startswith("."):
            path.write_text("no image")
        else:
            picture(path, seed=i, size=(8, 8))
    with logged(caplog, mention):
        splits = folder(tmp_path / "images", image_size=4)
    assert len(caplog.messages) == 1
    assert (len(splits.train), 0 if splits.test is None else len(splits.test)) == (train, test)
    assert splits.train.classes == classes
    if splits.test is not None:
        seen = {image.numpy().tobytes() for image in memory(splits.train).pixels}
        assert not any(image.numpy().tobytes() in seen for image in memory(splits.test).pixels)


def test_the_part_held_out_is_a_function_of_the_seed(tmp_path: Path):
    for i in range(40):
        picture(tmp_path / f"images/{'ab'[i % 2]}/{i}.png", seed=i)
    held = [memory(folder(tmp_path / "images", test_fraction=0.25, seed=seed).test) for seed in (0, 0, 1)]
    assert torch.equal(held[0].pixels, held[1].pixels)
    assert not torch.equal(held[0].pixels, held[2].pixels)
    assert held[0].labels.tolist() == [0] * 5 + [1] * 5
    assert folder(tmp_path / "images", labels=False).train.labels.tolist() == [-1] * 36


def test_several_roots_are_one_data_set(root: Path, tmp_path: Path):
    picture(tmp_path / "more/cat/1.png", seed=10)
    picture(tmp_path / "more/cow/1.png", seed=11)
    splits = folder([root, str(tmp_path / "more")])
    assert splits.name == "images+more"
    assert splits.train.classes == ("ant", "cat")  # more/ has no train, and beside a train folder nothing is guessed
    for name in ("cat", "cow"):
        (tmp_path / "more/train").mkdir(exist_ok=True)
        (tmp_path / "more" / name).rename(tmp_path / "more/train" / name)
    splits = folder([root, str(tmp_path / "more")])
    assert splits.train.classes == ("ant", "cat", "cow")
    assert splits.train.labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert len(memory(splits.test)) == 2


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_tables(root: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture):
    rows = [
        {"Image": "train/cat/b.png", "class": "cat", "split": "Train"},
        {"Image": str(root / "train/ant/z.bmp"), "class": "ant", "split": "train"},
        {"Image": "train/cat/a.PNG", "class": "", "split": "train"},
        {"Image": "test/cat/q.png", "class": "cat", "split": "valid"},
        {"Image": "gone.png", "class": "cat", "split": "train"},
    ]
    path = root / f"labels.{kind}"
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pyarrow.parquet = pytest.importorskip("pyarrow.parquet")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    with pytest.raises(UnreadableImage, match=r"1 images are missing: gone\.png; data\.on_error=skip"):
        folder(path)
    with logged(caplog, r"1 files of the table do not exist: gone\.png"):
        splits = folder(path, on_error="skip")
    assert splits.train.classes == ("ant", "cat")
    assert splits.train.labels.tolist() == [0, -1, 1]
    assert memory(splits.test).labels.tolist() == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("label\ncat\n", "no column path or image or file"),
        ("path,split\ntrain/cat/b.png,folds\n", "a split is train, val or test, not 'folds'"),
        ("path,label\ntrain/cat/b.png,cat\ntrain/cat/b.png,dog\n", "has two labels, cat and dog"),
        ("path,label\n", "has no rows"),
    ],
)
def test_tables_that_cannot_be_used(root: Path, content: str, message: str):
    (root / "labels.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        folder(root / "labels.csv")


def test_images_have_the_label_of_their_folder_not_of_a_link_to_it(root: Path) -> None:
    (root / "train/aardvark").symlink_to(root / "train/cat")
    assert "aardvark" not in folder(root, image_size=4).train.classes


def test_pipes_alone_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match=r"a\.png is not a readable image \(no regular file\)"):
        folder(tmp_path, on_error="skip")


def test_links_are_followed_once_and_never_from_training_into_the_test_set(
    root: Path, caplog: pytest.LogCaptureFixture
):
    (root / "train/cat/up").symlink_to(root)
    (root / "train/ant/other").symlink_to(root / "test")
    (root / "train/ant/again.png").symlink_to(root / "train/ant/x/deep.png")
    (root / "train/cow").symlink_to(root / "train/cat")
    with logged(caplog, "links lead to a folder around them or read before: .*cat/up.*cow"):
        splits = folder(root)
    assert (len(splits.train), len(memory(splits.test))) == (4, 2)
    assert "3 images are there under another name" in caplog.text
    assert splits.train.labels.tolist() == [0, 0, 1, 1]


def test_names_that_are_not_utf8(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for i, name in enumerate([b"caf\xe9", b"th\xe9"]):
        place = os.path.join(os.fsencode(tmp_path), b"images", name)
        os.makedirs(place)
        Image.fromarray(np.full((4, 4, 3), i, dtype=np.uint8)).save(tmp_path / "a.png")
        os.rename(tmp_path / "a.png", os.path.join(place, b"\xff.png"))
        Path(os.fsdecode(place), "notes\udce9").write_text("no image")
    (Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"images"))) / "emp\udcffty").mkdir()
    with logged(caplog, r"hold no image: .*emp\\\\?udcffty"):
        splits = folder(tmp_path / "images")
    for message in caplog.messages:
        message.encode("utf-8")
    assert memory(splits.train).pixels[:, 0, 0, 0].tolist() == [0, 1]
    assert len(splits.train.classes) == 2
    (tmp_path / "images" / os.fsdecode(b"caf\xe9") / os.fsdecode(b"\xff.png")).write_bytes(b"what?")
    with pytest.raises(UnreadableImage) as caught:
        folder(tmp_path / "images")
    str(caught.value).encode("utf-8")
    assert len(folder(tmp_path / "images", on_error="skip").train) == 1


def test_folders_that_cannot_be_read_are_named(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    scan = os.scandir

    def refused(path: str) -> Any:
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)  # root may read every folder
    with pytest.raises(UnreadableImage, match=r"2 folders cannot be read: .*cat.*cat; data\.on_error=skip"):
        folder(root)
    with logged(caplog, "2 folders cannot be read"):
        assert len(folder(root, on_error="skip").train) == 2


# --- more than 8 bits, other numbers of channels


def test_sixteen_bits_that_use_a_part_of_their_range(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    values = np.array([[0, 1024, 4095], [2048, 100, 5000]], dtype=np.uint16)
    (tmp_path / "images").mkdir()
    Image.fromarray(values).save(tmp_path / "images/a.png")
    with logged(caplog, r"highest value in 1 16-bit images .* is 5000 of 65535.*data\.range=\[0,5000\]"):
        folder(tmp_path / "images", channels=1)
    caplog.clear()
    train = memory(folder(tmp_path / "images", channels=1, range=[0, 4095]).train)
    assert train.pixels[0, 0].tolist() == [[0, 64, 255], [128, 6, 255]]
    assert "16-bit" not in caplog.text
    files = folder(tmp_path / "images", channels=1, range=[0, 4095], image_size=2, memory_limit_gb=0.0).train
    assert torch.equal(
        files.take(torch.tensor([0])).pixels,
        memory(folder(tmp_path / "images", channels=1, range=[0, 4095], image_size=2).train).pixels,
    )

    Image.fromarray(np.full((2, 3), 60000, dtype=np.uint16)).save(tmp_path / "images/b.png")
    folder(tmp_path / "images", channels=1)
    assert "16-bit" not in caplog.text


def test_tiff_of_floats_and_of_bands(tmp_path: Path):
    tifffile = pytest.importorskip("tifffile", reason="pip install 'contrast-learning[tiff]'")
    rng = np.random.default_rng(0)
    floats = rng.uniform(-1, 1, (5, 6)).astype(np.float32)
    bands = rng.integers(0, 4096, (5, 6, 5), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "floats.tif", floats)
    tifffile.imwrite(tmp_path / "bands.tif", bands, photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(
        tmp_path / "planes.tif", bands.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate"
    )
    expected = ((floats.astype(np.float64) + 1) / 2 * 255).round().astype(np.uint8)
    np.testing.assert_array_equal(decode(tmp_path / "floats.tif", 1, value_range=[-1, 1])[0], expected)
    with pytest.raises(UnreadableImage, match=r"32-bit.*in -0\.\d+\.\.0\.\d+, and data\.range"):
        decode(tmp_path / "floats.tif", 1)
    expected = (bands / 4095.0 * 255).round().astype(np.uint8).transpose(2, 0, 1)
    for name in ("bands.tif", "planes.tif"):
        np.testing.assert_array_equal(decode(tmp_path / name, 5, value_range=[0, 4095]), expected)
    assert decode(tmp_path / "bands.tif", 5, image_size=3).shape == (5, 3, 3)
    with pytest.raises(UnreadableImage, match=r"\[5, 6, 5\], not \[H, W, 4\]"):
        decode(tmp_path / "bands.tif", 4)


def test_four_channels(tmp_path: Path):
    values = np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(values).save(tmp_path / "images/a.png")
    train = memory(folder(tmp_path / "images", channels=4).train)
    np.testing.assert_array_equal(train.pixels[0].numpy(), values.transpose(2, 0, 1))
    files = folder(tmp_path / "images", channels=4, image_size=4, memory_limit_gb=0.0).train
    assert [len(part) for part in files.statistics()] == [4, 4]
    picture(tmp_path / "images/b.png")
    with pytest.raises(UnreadableImage, match="it has 3 channels, not 4"):
        folder(tmp_path / "images", channels=4)


def test_photographs_of_phones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    heif = pytest.importorskip("pillow_heif", reason="pip install 'contrast-learning[heif]'")
    (tmp_path / "images").mkdir()
    picture(tmp_path / "b.png", size=(64, 64))
    heif.from_pillow(Image.open(tmp_path / "b.png")).save(tmp_path / "images/a.HEIC")
    assert memory(folder(tmp_path / "images").train).pixels.shape == (1, 3, 64, 64)


def test_without_its_reader_a_kind_is_named_with_the_cure(root: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any):
    monkeypatch.setattr("contrast.data.images.listing.pillow_heif", None)
    monkeypatch.setattr("contrast.data.images.listing.suffixes", lambda: (".png",))
    (root / "train/cat/photo.heic").write_bytes(b"")
    with logged(caplog, r"1 \.bmp, 1 \.heic, 1 \.txt; pip install 'contrast-learning\[heif\]' reads \.heic"):
        folder(root)


def photograph(path: Path, width: int, height: int, **options: Any) -> None:
    """Coarse and fine structure with hard edges, as JPEG."""
    rng = np.random.default_rng(0)
    values = sum(
        np.kron(rng.normal(0, 20, (-(-height // step), -(-width // step), 3)), np.ones((step, step, 1)))[
            :height, :width
        ]
        for step in (64, 16, 4, 1)
    )
    Image.fromarray((values + 128).clip(0, 255).astype(np.uint8)).save(path, "JPEG", quality=90, **options)


@pytest.mark.parametrize(("width", "height", "orientation"), [(800, 600, 1), (600, 800, 6), (1000, 260, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_decoded_at_a_reduced_size_is_nearly_the_same(
    tmp_path: Path, width: int, height: int, orientation: int, channels: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph(tmp_path / "a.jpg", width, height, exif=exif)
    exact, fast = (decode(tmp_path / "a.jpg", channels, 64, fast_jpeg=each).astype(int) for each in (False, True))
    assert fast.shape == (channels, 64, 64)
    assert 0 < np.abs(exact - fast).mean() < 1.5  # docs/data.md
    assert np.quantile(np.abs(exact - fast), 0.99) <= 5


def test_what_is_never_decoded_at_a_reduced_size(tmp_path: Path) -> None:
    photograph(tmp_path / "small.jpg", 190, 127)  # a half has less than twice the pixels
    for size in (32, None):
        exact, fast = (decode(tmp_path / "small.jpg", 3, size, fast_jpeg=each) for each in (False, True))
        np.testing.assert_array_equal(exact, fast)
    with Image.open(tmp_path / "small.jpg") as image:
        image.resize((800, 600)).save(tmp_path / "large.png")
    exact, fast = (decode(tmp_path / "large.png", 3, 32, fast_jpeg=each) for each in (False, True))
    np.testing.assert_array_equal(exact, fast)


def test_fast_jpegs_have_a_cache_entry_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    photograph(tmp_path / "set" / "a.jpg", 800, 600)
    exact, fast = (folder(tmp_path / "set", image_size=64, fast_jpeg=each).train for each in (False, True))
    large = folder(tmp_path / "set", image_size=64, fast_jpeg=True, memory_limit_gb=0.0).train
    assert not torch.equal(exact.pixels, fast.pixels)
    assert torch.equal(large.take(torch.tensor([0])).pixels, fast.pixels)
