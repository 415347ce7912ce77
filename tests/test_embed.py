"""contrast-embed: the vectors of evaluation in a file, in every format, whatever stopped it on the way."""

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, called
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import contrast
from contrast.cli import commands
from contrast.data.images.digits import digits
from contrast.data.images.folder import folder
from contrast.data.store import to_texts
from contrast.deploy import table
from contrast.deploy.load import ImageEncoder
from contrast.deploy.parts import Parts
from contrast.encoders.weights import read
from contrast.errors import InputError
from contrast.evaluation.encoder import from_checkpoint
from contrast.evaluation.features import features
from contrast.training.predict import Predictor

CPU = ("trainer.accelerator=cpu", "workers=0")


@pytest.fixture
def embed(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`contrast-embed` with these words in this process; returns its exit status."""
    return lambda *words: called(commands.embed, monkeypatch, *words, *CPU)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """30 digits to train on and 10 to test on, in folders of two classes, twice as large as the encoder takes."""
    root = tmp_path_factory.mktemp("images")
    pixels = digits().train.pixels[:40, 0].numpy()
    for i, image in enumerate(pixels):
        file = root / ("train" if i < 30 else "test") / "ab"[i % 2] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((20, 16)).save(file)
    return root


def expected(trained: Path, images: Path) -> Tensor:
    """What contrast-evaluate computes of this folder."""
    splits = folder(images, image_size=8, channels=1)
    encoder = from_checkpoint(read(trained / "checkpoints" / "last.ckpt")).eval()
    return torch.cat([features(encoder, part) for part in (splits.train, splits.test)])


def names(images: Path) -> list[str]:
    return [f.relative_to(images).as_posix() for s in ("train", "test") for f in sorted((images / s).rglob("*.png"))]


def test_the_vectors_are_those_of_the_evaluation_and_of_load(embed: Command, trained: Path, images: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert embed(f"checkpoint={trained}", f"data.root={images}", "out=a/features.parquet", "batch_size=4") == 0
    rows = parquet.read_table("a/features.parquet")
    assert rows.column_names == ["file", "label", "split", "vector"]
    assert rows["file"].to_pylist() == names(images)
    assert rows["label"].to_pylist() == [name.split("/")[1] for name in names(images)]
    assert rows["split"].to_pylist() == ["train"] * 30 + ["test"] * 10
    vectors = torch.tensor(rows["vector"].to_pylist())
    torch.testing.assert_close(vectors, expected(trained, images), rtol=0, atol=1e-5)
    encoder = contrast.load(trained)
    assert isinstance(encoder, ImageEncoder)
    here = encoder.embed([images / name for name in names(images)])
    torch.testing.assert_close(vectors, here, rtol=0, atol=1e-5)
    assert {path.name for path in Path("a").iterdir()} == {"features.parquet"}  # no scratch files


def test_every_format_holds_the_same(embed: Command, trained: Path, images: Path) -> None:
    for out in ("f.npy", "g.csv", "h.safetensors"):
        assert embed(f"checkpoint={trained}", f"data.root={images}", f"out={out}", "neighbours=3") == 0
    vectors = np.load("f.npy")
    np.testing.assert_allclose(vectors, expected(trained, images), rtol=0, atol=1e-5)
    header, *lines = csv.reader(Path("g.csv").read_text().splitlines())
    assert header == ["file", "label", "split", "neighbours", "cosines", *(f"f{i}" for i in range(32))]
    np.testing.assert_array_equal(np.array([line[5:] for line in lines], dtype=np.float32), vectors)
    saved = load_file("h.safetensors")
    np.testing.assert_array_equal(saved["vectors"], vectors)
    assert to_texts(saved["files"]) == [line[0] for line in lines] == names(images)
    assert to_texts(saved["labels"]) == [line[1] for line in lines]
    assert to_texts(saved["splits"]) == [line[2] for line in lines]
    assert [line[3] for line in lines] == [" ".join(map(str, row)) for row in saved["neighbours"].tolist()]
    beside = list(csv.reader(Path("f.csv").read_text().splitlines()))
    assert beside == [line[:5] for line in [header, *lines]]
    unit = torch.nn.functional.normalize(torch.from_numpy(vectors).double(), dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-2)
    torch.testing.assert_close(saved["cosines"].double(), cosines.topk(3).values, rtol=0, atol=1e-6)
    torch.testing.assert_close(saved["cosines"].double(), cosines.gather(1, saved["neighbours"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("faiss", [True, False])
def test_neighbours_are_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faiss: bool) -> None:
    if faiss:
        pytest.importorskip("faiss")
    else:
        monkeypatch.setattr(table, "find_spec", lambda name: None)
    vectors = torch.randn(700, 6, generator=torch.Generator().manual_seed(0))
    vectors[:20] = vectors[20]  # more equal images than neighbours
    found = table.nearest_neighbours(vectors.numpy(), 5, tmp_path / "unit.npy", torch.device("cpu"))
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-2)
    np.testing.assert_allclose(found.cosines, cosines.topk(5).values, rtol=0, atol=1e-6)
    np.testing.assert_allclose(cosines.gather(1, torch.from_numpy(found.rows)), found.cosines, rtol=0, atol=1e-6)
    assert (found.rows != np.arange(700)[:, None]).all()
    assert table.nearest_neighbours(vectors[:3].numpy(), 5, tmp_path / "unit.npy", torch.device("cpu")).rows.shape == (
        3,
        2,
    )


def test_neighbours_in_parquet_are_what_embedding_atlas_reads(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    near = table.Neighbours(np.array([[1], [0]]), np.array([[0.75], [0.75]], dtype=np.float32))
    rows = table.Table(["a", "b"], ["x", ""], ["train"] * 2, np.ones((2, 3), dtype=np.float32), near)
    table.save_table(tmp_path / "t.parquet", rows)
    (first, second) = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert first["neighbours"] == {"ids": [1], "distances": [0.25]}
    assert second["label"] is None


def test_a_killed_run_goes_on_where_it_was(
    embed: Command, trained: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (f"checkpoint={trained}", f"data.root={images}", "out=f.npy", "batch_size=1")
    written: list[int] = []
    write = Parts.write

    def dies(self: Parts, part: Any, vectors: np.ndarray) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(part.first)
        write(self, part, vectors)

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "write", dies)
        assert embed(*words) == 130
    assert not Path("f.npy").exists()
    assert written == [0, 8]  # parts of 8 batches
    seen: list[int] = []
    step = Predictor.predict_step

    def watched(self: Predictor, batch: Any) -> None:
        seen.append(len(batch.pixels))
        step(self, batch)

    monkeypatch.setattr(Predictor, "predict_step", watched)
    assert embed(*words) == 0
    assert sum(seen) == 40 - 16
    np.testing.assert_allclose(np.load("f.npy"), expected(trained, images), rtol=0, atol=1e-5)
    assert not Path("f.npy.parts").exists()
    Image.fromarray(np.full((8, 8), 255, dtype=np.uint8)).save(images / "test" / "a" / "99.png")
    try:  # other images: nothing of theirs is there
        seen.clear()
        assert embed(*words) == 0
        assert sum(seen) == 41
    finally:
        (images / "test" / "a" / "99.png").unlink()


def test_the_data_of_the_run_and_other_data_sets(embed: Command, trained: Path) -> None:
    assert embed(f"checkpoint={trained}", "out=own.safetensors") == 0
    assert embed(f"checkpoint={trained}", "data=digits", "out=same.safetensors") == 0
    own, same = load_file("own.safetensors"), load_file("same.safetensors")
    assert own["vectors"].shape == (1797, 32)
    assert torch.equal(own["vectors"], same["vectors"])
    assert to_texts(own["files"])[1435:1439] == ["1435", "1436", "0", "1"]  # rows of each split
    assert set(to_texts(own["labels"])) == set("0123456789")


def test_what_cannot_be_embedded_ends_at_the_door(
    embed: Command, trained: Path, images: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, reason in {
        ("out=f.txt",): "f.txt",
        ("out=f.npy", "neighbours=-1"): "neighbours=-1",
        ("out=f.npy", "data=docstrings", "data.most=2000", "data.min_count=1"): "text",
        ("out=f.npy", "data.root=absent"): "absent does not exist; data.root=FOLDER says where the images of",
        ("out=f.npy", "data.root=absent", "+data.image_sze=8"): "did you mean 'image_size'?",
        ("out=f.npy", "data=cifar10", "data.root=absent"): "no cifar10 in",
        ("out=f.npy", "+trainer.banana=1"): "'banana'",
    }.items():
        assert embed(f"checkpoint={trained}", *words) == 2
        assert reason in capfd.readouterr().err
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'contrast-learning\[parquet\]'"):
        table.check_out("f.parquet")


@pytest.mark.parametrize("part", ["data", "encoder"])
def test_a_checkpoint_calls_nothing_but_known_parts(
    embed: Command, trained: Path, capfd: pytest.CaptureFixture[str], part: str
) -> None:
    saved = read(trained / "checkpoints" / "last.ckpt")
    torch.save({**saved, "config": {**saved["config"], part: {"_target_": "os.mkdir", "path": "made"}}}, "hostile.ckpt")
    assert embed("checkpoint=hostile.ckpt", "out=f.npy") == 2
    assert "os.mkdir" in capfd.readouterr().err
    assert not Path("made").exists()


@pytest.mark.slow
def test_two_ranks_write_what_one_writes(embed: Command, trained: Path, images: Path) -> None:
    words = [f"checkpoint={trained}", f"data.root={images}", "batch_size=2", *CPU]
    assert embed(*words, "out=one.npy") == 0
    script = Path(contrast.__file__).parents[1] / "scripts" / "embed.py"
    two = [sys.executable, str(script), *words, "out=two.npy", "trainer.devices=2", "trainer.strategy=ddp"]
    done = subprocess.run(two, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("two.npy: 40 rows") == 1
    np.testing.assert_allclose(np.load("two.npy"), np.load("one.npy"), rtol=0, atol=1e-6)


def test_every_split_is_embedded_unless_one_is_chosen(
    embed: Command, trained: Path, workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also what no training reads: val beside test, classes only in test, images beside the splits."""
    files = ["train/a/0.png", "test/a/1.png", "test/only/2.png", "val/a/3.png", "extra/4.png"]
    for name in files:
        (workplace / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(workplace / "own" / name)
    assert embed(f"checkpoint={trained}", "data.root=own", "out=f.csv") == 0
    out = capfd.readouterr().out
    assert "passed over" not in out
    assert "train 1, test 2, val 1, other 1" in out
    rows = list(csv.reader(Path("f.csv").read_text().splitlines()))[1:]
    assert sorted(row[0] for row in rows) == sorted(files)
    assert {row[0]: row[1:3] for row in rows}["test/only/2.png"] == ["only", "test"]
    assert embed(f"checkpoint={trained}", "data.root=own", "out=g.csv", "split=val") == 0
    assert [row.split(",")[:3] for row in Path("g.csv").read_text().splitlines()[1:]] == [["val/a/3.png", "a", "val"]]
    assert embed(f"checkpoint={trained}", "data.root=own", "out=h.csv", "split=banana") == 2
    assert "split=banana" in capfd.readouterr().err
    shutil.rmtree("own/train")
    assert embed(f"checkpoint={trained}", "data.root=own", "out=i.csv") == 0


@pytest.mark.parametrize(
    ("out", "fact"),
    [
        ("folder.csv", "folder.csv is a folder"),
        ("new.csv/", "new.csv/ is the name of a folder"),
        ("file.txt/a.csv", "file.txt is not a folder"),
    ],
)
def test_where_no_file_can_be_written(embed: Command, trained: Path, capfd: Any, out: str, fact: str) -> None:
    """It is found before the first vector."""
    Path("folder.csv").mkdir()
    Path("file.txt").touch()
    before = set(Path().rglob("*"))
    assert embed(f"checkpoint={trained}", f"out={out}") == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert fact in line
    assert {path for path in Path().rglob("*") if "runs" not in path.parts and "cache" not in path.parts} == before
