"""A run is named after what it is, and its paths hold from any folder."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
from conftest import TINY, Command
from omegaconf import OmegaConf
from PIL import Image

from contrast.run.compose import config_loader, load_config
from contrast.run.folder import conf_folder, make_absolute, read_config

DATE = "2026-01-02_03-04-05"
QUICK = (*TINY, "trainer.limit_train_batches=1", "batch_size=8")


@pytest.mark.parametrize(
    ("command", "words", "name"),
    [
        ("pretrain", "", "simclr-digits-small"),
        ("pretrain", "experiment=simclr_folder data.root=/x/cats method=moco", "moco-cats-resnet18"),
        ("pretrain", "method=clip data=captions data.file=a/two.csv encoder=vit", "clip-two-vit_ti"),
        ("pretrain", "data=folder data.root=[a/one,b] encoder=small", "simclr-one-small"),
        ("pretrain", "data=hf data.name=some/birds encoder=resnet50", "simclr-birds-resnet50"),
        ("pretrain", "data=webdataset data.urls=a/photos/*.tar encoder=small", "simclr-photos-small"),
        ("pretrain", "method=moco,simclr encoder=small,resnet18 seed=1,2", "digits"),
        ("pretrain", "name=mine", "mine"),
        ("words", "output=nce data=corpus data.path=a/b.txt", "word_vectors-nce-b"),
        ("words", "experiment=language_model", "language_model-full_softmax-docstrings"),
        ("evaluate", f"protocol=knn checkpoint=runs/moco-cats-small/{DATE}", "evaluate/knn-moco-cats-small"),
        ("evaluate", f"checkpoint=a/{DATE}/checkpoints/epoch_00050.ckpt", "evaluate/linear-a-epoch_00050"),
        ("evaluate", "checkpoint=torchvision:resnet18 data=cifar10", "evaluate/linear-torchvision_resnet18-cifar10"),
        ("evaluate", "checkpoint=a,b protocol=knn,linear", "evaluate/several"),
    ],
)
def test_a_run_is_named_after_method_data_and_encoder(command: str, words: str, name: str) -> None:
    with config_loader(conf_folder()) as loader:
        cfg = load_config(loader, command, words.split(), sweeps="," in words)
        assert cfg.name == name
        assert cfg.hydra.run.dir.startswith(f"runs/{name}/")


def pictures(folder: Path, classes: str, count: int = 10) -> None:
    for label in classes:
        (folder / label).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (8, 8), 20 * (i + 1)).save(folder / label / f"{i}.png")


def test_a_run_can_be_used_from_another_folder(
    pretrain: Command, evaluate: Command, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(workplace / "own", "ab")
    assert pretrain(*QUICK, "data=folder", "data.root=own", "encoder=small") == 0
    (run,) = (workplace / "runs" / "simclr-own-small").iterdir()
    assert OmegaConf.load(run / "config.yaml").data.root == str(workplace / "own")
    (workplace / "elsewhere").mkdir()
    monkeypatch.chdir(workplace / "elsewhere")
    assert evaluate(f"checkpoint=../runs/simclr-own-small/{run.name}", "protocol=knn", "trainer.accelerator=cpu") == 0
    (evaluation,) = Path("runs/evaluate/knn-simclr-own-small").iterdir()
    metrics = json.loads((evaluation / "metrics.json").read_text())
    assert (metrics["protocol"], metrics["data"]) == ("knn", "own")
    assert Path(metrics["checkpoint"]).samefile(run)
    assert pretrain(f"resume={run}", "trainer.max_epochs=2") == 0


def test_only_paths_become_absolute(workplace: Path) -> None:
    (workplace / "resnet18").mkdir()
    (workplace / "w.pt").touch()
    config = {
        "name": "resnet18",
        "data": {"root": "some", "path": ["a", "/b"], "name": "resnet18", "file": None},
        "encoder": {"name": "resnet18", "weights": "w.pt"},
        "key": {"encoder": {"weights": "timm:resnet18"}},
        "other": {"root": "s3://bucket", "urls": ["sh/{0..1}.tar", "s3://b/0.tar"], "test_urls": "sh/*.tar"},
        "tower": {"pretrained": "w.pt", "vectors": "w.pt", "output_vectors": None},
        "model": {"pretrained": "laion2b", "vectors": "none", "output_vectors": "w.pt"},
    }
    make_absolute(config)
    assert config == {
        "name": "resnet18",
        "data": {
            "root": f"{workplace}/some",
            "path": [f"{workplace}/a", "/b"],
            "name": "resnet18",
            "file": None,
        },
        "encoder": {"name": "resnet18", "weights": f"{workplace}/w.pt"},
        "key": {"encoder": {"weights": "timm:resnet18"}},
        "other": {
            "root": "s3://bucket",
            "urls": [f"{workplace}/sh/{{0..1}}.tar", "s3://b/0.tar"],
            "test_urls": f"{workplace}/sh/*.tar",
        },
        "tower": {"pretrained": f"{workplace}/w.pt", "vectors": f"{workplace}/w.pt", "output_vectors": None},
        "model": {"pretrained": "laion2b", "vectors": "none", "output_vectors": f"{workplace}/w.pt"},
    }


def test_a_complete_run_keeps_its_data(pretrain: Command, workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("own", "other"):
        pictures(workplace / name, "ab")
    assert pretrain(*QUICK, "data=folder", "data.root=own", "encoder=small", "hydra.run.dir=run") == 0
    before = {name: Path("run", name).read_bytes() for name in ("config.yaml", "overrides.yaml", "metrics.json")}
    assert pretrain("resume=run", "data.root=other") == 2
    assert "contrast-evaluate checkpoint=" in capfd.readouterr().err
    assert pretrain("resume=run", "data.root=own") == 0
    assert "is complete" in capfd.readouterr().out
    Path("run/metrics.json").unlink()
    assert pretrain("resume=run", "data.root=nowhere") == 2
    Path("run/metrics.json").write_bytes(before["metrics.json"])
    assert {name: Path("run", name).read_bytes() for name in before} == before
    # a run of an earlier version, whose path is relative
    shutil.copytree("run", "old")
    config = {**read_config(Path("run")), "name": "simclr"}
    config["data"] = {**config["data"], "root": "own"}  # type: ignore[dict-item]
    OmegaConf.save(OmegaConf.create(config), "old/config.yaml")
    capfd.readouterr()
    assert pretrain("resume=old") == 0
    assert "is complete" in capfd.readouterr().out
    assert pretrain("resume=old", "trainer.max_epochs=2") == 0
    assert OmegaConf.load("old/config.yaml").name == "simclr"
    assert OmegaConf.load("old/config.yaml").data.root == str(workplace / "own")


@pytest.mark.parametrize(
    ("words", "views", "encoder"),
    [
        ("", "digits", "small"),
        ("data=folder data.root=x", "natural", "resnet18"),
        ("data=hf data.name=x views=simclr", "simclr", "resnet18"),
        ("data=cifar10", "natural", "small"),
        ("data=cifar10 encoder=vit", "natural", "vit"),
        ("method=clip", "digits", "small"),
        ("method=clip data=captions data.file=x.csv", "captions", "resnet18"),
        ("experiment=simclr_cifar10", "natural", "resnet18"),
    ],
)
def test_views_and_encoder_suit_the_data(words: str, views: str, encoder: str) -> None:
    """By default; their own settings follow the size of the images."""
    with config_loader(conf_folder()) as loader:
        choices = load_config(loader, "pretrain", words.split()).hydra.runtime.choices
    assert (choices.views, choices.encoder) == (views, encoder)


def test_what_the_console_says_is_kept_in_the_folder(
    pretrain: Command, workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pictures(workplace / "own", "ab")
    (workplace / "own" / "empty").mkdir()
    (workplace / "own" / "a" / "notes.doc").touch()
    warn = "+callbacks.warn._target_=test_names.Warns"
    assert pretrain(*QUICK, "data=folder", "data.root=own", "encoder=small", warn, "hydra.run.dir=run") == 0
    text, kept = capfd.readouterr(), Path("run/pretrain.log").read_text()
    for part in ("1 .doc; 1 folders hold no image", "18 images of own; the run folder is", "mind the gap"):
        assert text.out.count(part) == kept.count(part) == 1
    assert "UserWarning" not in text.out + text.err + kept


class Warns(pl.Callback):
    def on_train_start(self, *_: object) -> None:
        for _ in range(2):
            warnings.warn("mind the gap", stacklevel=1)
