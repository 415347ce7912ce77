"""Images with captions: tables, splits by image, captions through batches, and every way in which a table is wrong."""

import csv
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

import contrast.data.images.folder
from contrast.data.images.captions import captions
from contrast.data.images.digits import TEMPLATES, WORDS, digits, digits_words
from contrast.data.images.image_set import Batch, ImageFiles, Images, Splits
from contrast.data.loader import Batches
from contrast.data.text.tokenizer import WordTokenizer
from contrast.errors import InputError
from contrast.training.data import PretrainData


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTRAST_CACHE", str(tmp_path / "cache"))


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5, 3), value, dtype=np.uint8)).save(path)


def table(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def pairs(count: int) -> list[dict[str, Any]]:
    """Image i has i % 3 + 1 captions, "image <i> take <j>"; rows of one image are apart."""
    return [
        {"path": f"{i}.png", "caption": f"image n{i} take t{j}"} for j in range(3) for i in range(count) if i % 3 >= j
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten images, image i of value 10 i everywhere."""
    for i in range(10):
        picture(tmp_path / f"images/{i}.png", 10 * i)
    return tmp_path / "images"


def told(splits: Splits, images: Images | ImageFiles) -> list[tuple[int, str]]:
    """The pixel value of each row and its caption, in order."""
    assert splits.tokenizer is not None
    assert images.text is not None
    batch = images.take(torch.arange(len(images)))
    assert batch.text is not None
    return list(zip(batch.pixels[:, 0, 0, 0].tolist(), splits.tokenizer.decode(batch.text), strict=True))


def expected(rows: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(10 * int(row["path"].partition(".")[0]), row["caption"]) for row in rows]


@pytest.mark.parametrize(
    ("name", "header", "delimiter"),
    [("captions.txt", ["image", "caption"], ","), ("results.csv", ["image_name", "comment"], "|")],
    ids=["Flickr8k of Kaggle", "Flickr30k of Kaggle"],
)
def test_files_of_captions_as_they_are_published(root: Path, name: str, header: list[str], delimiter: str):
    """Beside a folder of images, under other names of columns."""
    root.rename(root.parent / "Images")
    rows = [dict(zip(header, row.values(), strict=True)) for row in pairs(10)]
    file = table(root.parent / name, rows, delimiter)
    splits = captions(file, test_fraction=0)
    assert told(splits, splits.train) == expected(pairs(10))


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_every_row_keeps_its_caption_whatever_the_file(root: Path, kind: str):
    rows = pairs(10)
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="pip install 'contrast-learning[parquet]'")
        from pyarrow import parquet

        file = root / "table.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file = table(root / f"table.{kind}", rows, {"csv": ",", "tsv": "\t"}[kind])
    splits = captions(file, test_fraction=0)
    assert splits.test is None
    assert splits.name == "table"
    assert told(splits, splits.train) == expected(rows)
    assert splits.train.labels.tolist() == [-1] * len(rows)
    assert splits.train.classes == ()
    assert splits.train.text is not None
    assert splits.train.text.shape == (len(rows), 32)


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.3, 3), (0.99, 9)])
def test_no_image_is_on_both_sides_and_no_row_is_lost(root: Path, fraction: float, count: int):
    rows = pairs(10)
    file = table(root / "table.csv", rows)
    found = [captions(file, test_fraction=fraction, seed=seed, min_count=1) for seed in (0, 0, 1, 2)]
    sides = []
    for splits in found:
        assert splits.test is not None
        assert splits.tokenizer is not None
        train, test = splits.train, splits.test
        values = [images.take(torch.arange(len(images))).pixels[:, 0, 0, 0].tolist() for images in (train, test)]
        assert not set(values[0]) & set(values[1])
        assert Counter(values[0] + values[1]) == Counter(value for value, _ in expected(rows))
        assert len(set(values[1])) == count
        assert told(splits, train) == [pair for pair in expected(rows) if pair[0] in values[0]]
        sides.append(sorted(set(values[1])))
    assert sides[0] == sides[1]
    assert len({tuple(side) for side in sides}) > 1


def test_links_and_spellings_of_one_image_are_one_image(root: Path):
    (root / "link.png").symlink_to(root / "0.png")
    names = ["0.png", "link.png", "./0.png", str(root / "0.png"), "1.png"]
    file = table(root / "table.csv", [{"path": name, "caption": "x"} for name in names])
    for seed in range(4):
        splits = captions(file, test_fraction=0.5, seed=seed)
        assert splits.test is not None
        assert sorted([len(splits.train), len(splits.test)]) == [1, 4]


def test_words_are_those_of_the_training_captions(root: Path):
    rows = [{"path": f"{i}.png", "caption": f"the n{i}"} for i in range(10)]
    splits = captions(table(root / "table.csv", rows), test_fraction=0.2)
    assert splits.test is not None
    seen = {word for _, caption in told(splits, splits.train) for word in caption.split()}
    assert isinstance(splits.tokenizer, WordTokenizer)
    assert set(splits.tokenizer.vocabulary) == seen
    assert len(seen) == 9
    assert [caption for _, caption in told(splits, splits.test)] == ["the <unk>"] * 2
    again = captions(root / "table.csv", test_fraction=0.2, tokenizer=WordTokenizer(["the"]), length=3)
    assert again.train.text is not None
    assert again.train.text.tolist() == [[2, 1, 0]] * 8
    few = captions(root / "table.csv", test_fraction=0.2, min_count=2, max_words=5)
    assert isinstance(few.tokenizer, WordTokenizer)
    assert few.tokenizer.vocabulary == ("the",)


def test_a_second_table_and_classes(root: Path, tmp_path: Path):
    (tmp_path / "tables").mkdir()
    first = [{"file": f"{i}.png", "said": "a b", "kind": "cat" if i % 2 else ""} for i in range(6)]
    second = [{"file": f"{i}.png", "said": "b", "kind": "cat"} for i in (7, 8)]
    files = [table(tmp_path / f"tables/{name}.csv", rows) for name, rows in (("train", first), ("test", second))]
    options = {"root": root, "image_column": "file", "caption_column": "said", "label_column": "kind"}
    splits = captions(files[0], test_file=files[1], **options)
    assert splits.test is not None
    assert splits.train.classes == splits.test.classes == ("cat",)
    assert splits.train.labels.tolist() == [-1, 0] * 3
    assert splits.test.labels.tolist() == [0, 0]
    assert told(splits, splits.test) == [(70, "b"), (80, "b")]
    table(files[1], [*second, {"file": "./3.png", "said": "b", "kind": "dog"}])
    with pytest.raises(InputError, match=r"1 images are both in .*train\.csv and in .*test\.csv: .*3\.png"):
        captions(files[0], test_file=files[1], **options)
    table(files[1], [*second, {"file": "9.png", "said": "b", "kind": "dog"}])
    with pytest.raises(InputError, match=r"1 classes of .*test\.csv are not in .*train\.csv: dog"):
        captions(files[0], test_file=files[1], **options)


def test_over_the_memory_limit_is_the_same_data(root: Path):
    rows = pairs(10)
    file = table(root / "table.csv", rows)
    size = 10 * 3 * 4 * 4 / 1e9  # of the images; of the rows it is about twice as much
    inside = captions(file, image_size=4, test_fraction=0, memory_limit_gb=3 * size)
    large = captions(file, image_size=4, test_fraction=0, memory_limit_gb=1.5 * size)
    assert isinstance(inside.train, Images)
    assert isinstance(large.train, ImageFiles)
    assert told(large, large.train) == told(inside, inside.train) == expected(rows)
    chosen = torch.tensor([3, 0, 3])
    for images in (inside.train, large.train):
        assert images.text is not None
        part = images.select(chosen)
        assert part.text is not None
        assert torch.equal(part.text, images.text[chosen])
        assert torch.equal(part.take(torch.tensor([1]))[3], images.text[:1])
    with pytest.raises(InputError, match=f"{len(rows)} images of 5 x 4 .* give image_size"):
        captions(file, test_fraction=0, memory_limit_gb=0.0)


def test_an_image_is_decoded_once_however_many_captions_it_has(root: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[Path] = []
    real = contrast.data.images.image_set.decode
    monkeypatch.setattr(
        contrast.data.images.image_set, "decode", lambda path, *rest: seen.append(path) or real(path, *rest)
    )
    file = table(root / "table.csv", pairs(10))
    first = captions(file, image_size=4, test_fraction=0)
    assert len(seen) == 10
    second = captions(file, image_size=4, test_fraction=0)
    assert len(seen) == 10  # from the cache
    assert told(first, first.train) == told(second, second.train)


def test_what_cannot_be_used_is_named_or_skipped(root: Path, caplog: pytest.LogCaptureFixture):
    rows = pairs(4)  # of images 0, 1, 2, 3, 1, 2, 2
    rows[0]["caption"] = "  "
    rows.insert(2, {"path": "away.png", "caption": "gone"})
    file = table(root / "table.csv", rows)
    with pytest.raises(InputError, match=r"1 of 8 rows of .* have no caption: row 1 \(0\.png\); data\.on_error=skip"):
        captions(file, test_fraction=0)
    rows[0]["caption"] = "back"
    table(file, rows)
    with pytest.raises(InputError, match=r"1 of 8 rows .* an image that is not in .*: row 3 \(away\.png\)"):
        captions(file, test_fraction=0)
    (root / "1.png").write_bytes(b"what?")
    rows[0]["caption"] = ""
    table(file, rows)
    splits = captions(file, test_fraction=0, on_error="skip")
    messages = [message for message in caplog.messages if message.startswith("skipped: ")]
    assert [sum(part in message for message in messages) for part in ("no caption", "not in", "cannot be read")] == [
        1
    ] * 3
    left = [row for row in rows if row["path"] not in ("0.png", "1.png", "away.png")]
    assert told(splits, splits.train) == expected(left)
    (root / "1.png").unlink()
    picture(root / "1.png", 10)
    rows = [{"path": "none.png", "caption": "x"}, {"path": "", "caption": "y"}]
    with pytest.raises(InputError, match="none of the 2 rows"):
        captions(table(file, rows), on_error="skip")
    assert "skipped: 2 of 2" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column path, caption; its columns are none"),
        (b"path,caption\n", "has no rows"),
        (b"path;caption\n0.png;x\n", "no column path, caption; its columns are path;caption"),
        (b"path,words\n0.png,x\n", "no column caption; its columns are path, words"),
        (b"path,caption,caption\n0.png,x,y\n", "more than one column caption"),
        (b"path,caption\n0.png,x\n\n1.png,a, comma\n", "row 2 of .* has 3 fields, the header 2"),
        (b'path,caption\n0.png,x\n1.png,"open\n2.png,y\n', "line 4 cannot be read: unexpected end of data"),
        (b"path,caption\n0.png,\xff\xfe\n", "cannot be read: 'utf-8' codec"),
    ],
)
def test_tables_that_cannot_be_read(root: Path, content: bytes, message: str):
    (root / "table.csv").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        captions(root / "table.csv")
    assert "\n" not in str(caught.value)


def test_quotes_commas_a_byte_order_mark_and_lines_within_a_caption(root: Path):
    content = '\ufeffpath,caption\r\n0.png,"a, ""b"" \n c"\r\n'
    (root / "table.csv").write_bytes(content.encode())
    splits = captions(root / "table.csv", test_fraction=0)
    assert told(splits, splits.train) == [(0, 'a , " b " c')]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_fraction": 1.0}, r"\[0, 1\), not 1.0"),
        ({"on_error": "ignore"}, "raise or skip, not 'ignore'"),
        ({"channels": 2}, "not 2"),
        ({"length": 0}, "not 0"),
        ({"min_count": 99}, "occurs 99 times"),
        ({"test_file": "nowhere.csv"}, "no such file of captions: nowhere.csv"),
    ],
)
def test_options_out_of_range(root: Path, options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        captions(table(root / "table.csv", pairs(4)), **options)


def test_files_of_another_kind_and_too_few_images(root: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match=r"\.csv, \.tsv, \.txt and \.parquet, not from table\.json"):
        captions(table(root / "table.json", pairs(4)))
    with pytest.raises(InputError, match="has 1 image: none can be held out"):
        captions(table(root / "table.csv", [{"path": "0.png", "caption": "x"}] * 3))
    picture(root / "0.png", 3)
    Image.fromarray(np.zeros((9, 9, 3), dtype=np.uint8)).save(root / "9.png")
    with pytest.raises(InputError, match=r"differ in size.*give data\.image_size"):
        captions(table(root / "table.csv", pairs(10)))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"needs pyarrow: pip install 'contrast-learning\[parquet\]'"):
        captions(table(root / "table.parquet", pairs(4)))


def test_parquet_that_is_none_or_holds_no_texts(root: Path):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'contrast-learning[parquet]'")
    from pyarrow import parquet

    file = root / "table.parquet"
    file.write_bytes(b"what?")
    with pytest.raises(InputError, match=r"table\.parquet cannot be read"):
        captions(file)
    parquet.write_table(pyarrow.Table.from_pylist([{"path": "0.png"}]), file)
    with pytest.raises(InputError, match="no column caption; its columns are path"):
        captions(file)
    parquet.write_table(pyarrow.Table.from_pylist([{"path": {"bytes": b"", "path": "0.png"}, "caption": "x"}]), file)
    with pytest.raises(InputError, match=r"table\.parquet cannot be read: .*cast from struct"):
        captions(file)
    parquet.write_table(pyarrow.Table.from_pylist([{"path": "0.png", "caption": None}]), file)
    with pytest.raises(InputError, match=r"no caption: row 1 \(0\.png\)"):
        captions(file)


# --- captions through the rest


def numbered(count: int, length: int | None = 3) -> Images:
    """Image i has the value i everywhere and, with a length, the caption [i, i, ...]."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    text = None if length is None else torch.arange(count)[:, None].repeat(1, length)
    return Images(pixels, torch.zeros(count, dtype=torch.int64), ("a",), text)


@pytest.mark.parametrize("source", ["memory", "files", "workers"])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_batches_carry_the_caption_of_each_row(root: Path, source: str, device: str | None):
    rows = pairs(10)
    splits = captions(
        table(root / "table.csv", rows),
        image_size=4,
        test_fraction=0,
        memory_limit_gb=4.0 if source == "memory" else 0.0,
    )
    seen = []
    for batch in Batches(splits.train, 4, seed=1, device=device, workers=1 if source == "workers" else 0):
        assert isinstance(batch, Batch)
        assert batch.text is not None
        assert splits.train.text is not None
        assert torch.equal(batch.text, splits.train.text[batch.index])
        seen += batch.index.tolist()
    assert len(set(seen)) == len(rows) // 4 * 4


class Recorder(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Batch] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch)
        return self.weight * 1.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("length", [3, None])
def test_lightning_hands_batches_on_with_and_without_captions(length: int | None):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    module = Recorder()
    pl.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **quiet).fit(
        module, PretrainData(numbered(9, length), 4)
    )
    assert len(module.seen) == 2
    for batch in module.seen:
        assert isinstance(batch, Batch)
        assert torch.equal(batch.pixels[:, 0, 0, 0].long(), batch.index)
        if length is None:
            assert batch.text is None
        else:
            assert torch.equal(batch.text, batch.index[:, None].repeat(1, 3))


def test_pretrain_joins_captions_or_says_that_it_cannot():
    both = Splits("x", numbered(3), None, numbered(2)).pretrain
    assert both.text is not None
    assert both.text[:, 0].tolist() == [0, 1, 2, 0, 1]
    assert Splits("x", numbered(3, None), None, numbered(2, None)).pretrain.text is None
    for other, told in ((None, "None"), (5, "5")):
        with pytest.raises(InputError, match=rf"3 tokens \(train\) and {told} \(unlabelled\)"):
            _ = Splits("x", numbered(3), None, numbered(2, other)).pretrain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (torch.full((3, 4), 0.5), "token ids must be whole numbers, but 12 of 12"),
        (torch.zeros(2, 4, dtype=torch.int64), r"\[2, 4\]"),
        (torch.zeros(3, dtype=torch.int64), r"\[3\]"),
        (torch.tensor([[1], [-1], [0]]), "one is -1"),
    ],
)
def test_captions_that_do_not_fit_are_refused(text: torch.Tensor, message: str):
    pixels, labels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(InputError, match=message):
        Images(pixels, labels, ("a",), text)
    with pytest.raises(InputError, match=message):
        ImageFiles(Path(), np.array(["a", "b", "c"]), labels, ("a",), size=2, text=text)


# --- the digits


def test_digits_in_words_are_the_digits_with_their_words():
    splits, plain = digits_words(), digits()
    assert isinstance(splits.train, Images)
    assert isinstance(splits.test, Images)
    assert isinstance(plain.train, Images)
    assert isinstance(plain.test, Images)
    for ours, theirs in ((splits.train, plain.train), (splits.test, plain.test)):
        assert torch.equal(ours.pixels, theirs.pixels)
        assert torch.equal(ours.labels, theirs.labels)
        assert ours.classes == theirs.classes
    assert splits.tokenizer is not None
    assert splits.train.text is not None
    assert splits.test.text is not None
    spoken = splits.tokenizer.decode(splits.train.text)
    for caption, label in zip(spoken, splits.train.labels.tolist(), strict=True):
        assert [word for word in caption.split() if word in WORDS] == [WORDS[label]]
    assert splits.tokenizer.decode(splits.test.text) == [
        f"a handwritten {WORDS[i]}" for i in splits.test.labels.tolist()
    ]
    for text in (splits.train.text, splits.test.text):
        assert not (text == 1).any()  # no unknown word
        assert (text[:, -1] == 0).all()  # nothing cut
    assert len(splits.train.text.unique(dim=0)) == 10 * len(TEMPLATES)
    assert len(splits.test.text.unique(dim=0)) == 10
    assert torch.equal(splits.train.text, digits_words().train.text)


def test_the_template_tells_nothing_of_the_digit():
    labels = digits_words().train.labels
    counts = torch.zeros(len(TEMPLATES), 10)
    for row, label in enumerate(labels.tolist()):
        counts[row % len(TEMPLATES), label] += 1
    share = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum()
    chi_square = float(((counts - share) ** 2 / share).sum())
    assert chi_square < 80  # 45 degrees of freedom: above 80 once in a thousand


def test_a_file_as_flickr_has_it(root: Path) -> None:
    """Without a header: the image, #, the number of the caption, a tab, the caption; quotes are part of it."""
    lines = [f'{i}.png#{j}\tA "red" one, number n{i} t{j} .\n' for i in range(10) for j in range(2)]
    (root.parent / "Flickr8k.token.txt").write_text("".join(lines))
    splits = captions(root.parent / "Flickr8k.token.txt", test_fraction=0)
    every = [text for _, text in told(splits, splits.train)]
    assert sorted(every) == sorted(f'a " red " one , number n{i} t{j} .' for i in range(10) for j in range(2))
    (root.parent / "Flickr8k.token.txt").write_text(lines[0] + "no image\n")
    with pytest.raises(InputError, match=r"row 2 of .*token\.txt"):
        captions(root.parent / "Flickr8k.token.txt")
