"""contrast-pretrain from its command line to what lies in the run folder."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import FEW, TINY, Command, figures
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning.strategies import DDPStrategy

from contrast.cli import commands
from contrast.run.metrics import read_rows
from contrast.training.trainer import strategy

CHECKOUT = Path(__file__).resolve().parents[1]
SCORES = ("knn_top1", "linear_top1", "linear_2_per_class_top1")


@pytest.fixture
def returned(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the task gives Hydra, call by call."""
    values: list[Any] = []
    command = commands.PRETRAIN

    @functools.wraps(command.task)
    def recorded(cfg: Any) -> Any:
        values.append(command.task(cfg))
        return values[-1]

    monkeypatch.setattr(commands, "PRETRAIN", command._replace(task=recorded))
    return values


def test_a_run_leaves_all_it_was_and_all_it_found(
    pretrain: Command, workplace: Path, returned: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in (*TINY, *FEW) if not word.startswith("logger")]
    words += ["trainer.max_epochs=2", "trainer.limit_train_batches=5", "checkpoints.every_n_epochs=1"]
    assert pretrain(*words, "trainer.log_every_n_steps=1", "name=mine") == 0
    (run,) = (workplace / "runs" / "mine").iterdir()
    assert {path.name for path in run.iterdir()} >= {
        *("config.yaml", "overrides.yaml", "environment.json", "checkpoints", "metrics.jsonl", "metrics.json"),
        *("curves.png", "views.png", "wandb", "wandb_id"),
    }
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        *("last.ckpt", "epoch_00001.ckpt", "epoch_00002.ckpt"),
    }
    assert len(list((run / "wandb").glob("offline-run-*"))) == 1
    assert {path.name for path in workplace.iterdir()} <= {"runs", "cache"}

    found = figures(run)
    assert set(found) >= {f"{who}{score}" for who in ("", "untrained_", "pixels_") for score in SCORES}
    assert {"seconds", "images_per_second", "loss", "linear_val_top1"} <= set(found)
    assert found["seconds"] > 0
    assert 0.1 < found["knn_top1"] <= 1
    assert returned == [found["linear_val_top1"]]

    rows = read_rows(run / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(10))
    assert rows[-1]["final/knn_top1"] == pytest.approx(found["knn_top1"])
    assert sum("online/knn_top1" in row for row in rows) == 1
    assert sum("online/linear_top1" in row for row in rows) == 1

    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 10
    config = OmegaConf.load(run / "config.yaml")
    assert saved["config"]["encoder"] == config.encoder
    assert config.name == "mine"
    assert "name=mine" in list(OmegaConf.load(run / "overrides.yaml"))
    assert json.loads((run / "environment.json").read_text())[0]["packages"]["torch"] == torch.__version__
    for name, least in (("curves.png", 400), ("views.png", 16)):
        with Image.open(run / name) as picture:
            assert min(picture.size) >= least, name

    out, err = capfd.readouterr()
    for line in ("kNN top-1", "linear probe top-1", "linear probe, 2 labels a class", str(run), "W&B: offline"):
        assert line in out
    assert "10/10" in err  # of the progress bar


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(pretrain: Command) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert pretrain(*TINY, "trainer.limit_train_batches=3", f"seed={seed}", f"hydra.run.dir={name}") == 0
    a, b, c = (torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["encoder.0.weight"], c["encoder.0.weight"])


def test_the_untrained_figures_are_those_of_the_model_before_its_first_step(pretrain: Command) -> None:
    words = [word for word in (*TINY, *FEW) if not word.startswith("encoder.")]
    words += ["evaluation.pixels=false", "trainer.limit_train_batches=2", "hydra.run.dir=run"]
    # a network without running statistics, at a learning rate of 0, stays what it was
    vit = ("encoder=vit", "optimizer=sgd", "optimizer.lr=0", "batch_size=16")
    assert pretrain(*words, *vit) == 0
    found = figures("run")
    for score in SCORES:
        assert found[score] == found[f"untrained_{score}"]


def test_images_without_labels(
    pretrain: Command, workplace: Path, returned: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    (workplace / "flat").mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(12):
        pixels = torch.randint(256, (12, 12, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(workplace / "flat" / f"{i}.png")
    words = (
        "data=folder",
        "encoder=small",
        "data.root=flat",
        "batch_size=6",
        "evaluation.enabled=true",
        "trainer.log_every_n_steps=1",
    )
    assert pretrain(*TINY, *words, "hydra.run.dir=run") == 0
    assert set(figures("run")) == {"seconds", "images_per_second", "loss"}
    assert not any(name.startswith("online/") for row in read_rows(Path("run/metrics.jsonl")) for name in row)
    assert Path("run/checkpoints/last.ckpt").is_file()
    assert returned == [None]  # no figure for a sweep
    assert "top-1" not in capfd.readouterr().out


def test_no_probes_by_choice(pretrain: Command) -> None:
    assert pretrain(*TINY, "callbacks=none", "trainer.limit_train_batches=2", "hydra.run.dir=run") == 0
    assert "OnlineLinear" not in torch.load("run/checkpoints/last.ckpt", weights_only=True)["callbacks"]


def test_an_unknown_metric_names_those_there_are(pretrain: Command, capfd: pytest.CaptureFixture[str]) -> None:
    words = (*TINY, *FEW, "evaluation.untrained=false", "evaluation.pixels=false", "trainer.limit_train_batches=2")
    assert pretrain(*words, "metric=linear_tpo1", "hydra.run.dir=run") == 2
    assert "linear_top1" in capfd.readouterr().err.splitlines()[-1]
    assert not Path("run").exists()  # before anything was trained


# --- errors at the door


ERRORS = [
    (["batch_size=1"], "at least 2 images"),
    (["batch_size=2000"], "1437 images does not fill one batch of 2000: batch_size=1437"),
    (["head.temperature=0"], "temperature must be a positive number, got 0"),
    (["head.temprature=0.1"], "head has no key 'temprature'; did you mean 'temperature'?"),
    (["data=folder", "encoder=small", "data.root=nowhere"], "nowhere does not exist"),
    (["data=folder", "encoder=small", "data.root=."], "no images"),
    (["data=cifra10"], "did you mean 'cifar10'?"),
    (["views.views=1"], "at least 2 views"),
    (["optimizer.lr=1e30"], "first non-finite tensor"),
    (["checkpoints.every_n_epochs=-1"], "-1"),
    (["callbacks.online_knn.every_n_epochs=0"], "every_n_epochs of at least 1"),
    (["+trainer.fast_dev_run=true"], "debug=quick takes 2 steps"),
    (["trainer.precision=bf16-true"], "trainer.precision=bf16-mixed"),
    (["trainer.precision=16-true"], "trainer.precision=16-mixed"),
    (["method=full_softmax", "head=nce"], "head=nce and output=full_softmax both set head"),
    (["method=moco", "output=nce"], "negatives=queue and output=nce both set negatives"),
    (["output=sampled_softmax"], "Table holds classes: it needs same_label=positive"),
    (["method=moco", "~negatives.size"], "missing a required argument: 'size'"),
]


@pytest.mark.parametrize(("words", "part"), ERRORS, ids=[" ".join(words) for words, _ in ERRORS])
def test_errors(pretrain: Command, capfd: pytest.CaptureFixture[str], words: list[str], part: str) -> None:
    assert pretrain(*TINY, *words, "hydra.run.dir=run") == 2
    err = capfd.readouterr().err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert part in line


def test_a_step_that_is_not_finite_leaves_what_reproduces_it(pretrain: Command, workplace: Path) -> None:
    assert pretrain(*TINY, "optimizer.lr=1e30", "hydra.run.dir=run") == 2
    (file,) = Path("run").glob("nonfinite_*.pt")
    saved = torch.load(file, weights_only=True)
    assert saved["batch"]["pixels"].shape == (64, 1, 8, 8)
    assert saved["config"]["optimizer"]["lr"] == 1e30
    assert not Path("run/metrics.json").exists()


def test_the_real_command_ends_in_one_line(workplace: Path) -> None:
    """From a checkout, by its script, elsewhere."""
    script = CHECKOUT / "scripts" / "pretrain.py"
    command = [sys.executable, str(script), *TINY, "optimizer.lr=1e30", "trainer.log_every_n_steps=1"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: the loss of batch 2 is nan; first non-finite tensor: ")
    (run,) = Path("runs/simclr-digits-small").iterdir()
    assert str(next(run.glob("nonfinite_2.pt"))) in last


@pytest.mark.parametrize("words", [["trainer.limit_train_batches=2"], ["+trainer.max_steps=3"]])
def test_a_run_shorter_than_the_interval_of_its_log_has_its_last_step_in_it(
    pretrain: Command, returned: list[Any], words: list[str]
) -> None:
    assert pretrain(*TINY, *words, "metric=loss", "trainer.log_every_n_steps=50", "hydra.run.dir=run") == 0
    (row,) = [row for row in read_rows(Path("run/metrics.jsonl")) if "train/loss" in row]
    assert int(row["step"]) == torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] - 1
    assert returned == [figures("run")["loss"]]
    assert returned[0] == pytest.approx(float(row["train/loss"]))


def test_a_run_may_end_by_its_time_alone(pretrain: Command, returned: list[Any]) -> None:
    words = ("trainer.max_epochs=-1", "+trainer.max_time='00:00:00:02'", "scheduler.warmup_steps=3", "metric=loss")
    assert pretrain(*TINY, *words, "trainer.log_every_n_steps=1", "hydra.run.dir=run") == 0
    assert figures("run")["loss"] == returned[0] > 0
    rates = [row["train/lr"] for row in read_rows(Path("run/metrics.jsonl")) if "train/lr" in row]
    assert rates[:4] == pytest.approx([0.0005, 0.001, 0.0015, 0.002])
    assert set(rates[4:]) == {rates[3]}  # constant after the warm-up


def test_ranks_do_not_send_buffers_round() -> None:
    node = OmegaConf.load(CHECKOUT / "conf" / "trainer" / "default.yaml")
    assert strategy(node) == "auto"
    for named in ("auto", "ddp"):
        chosen = strategy(OmegaConf.merge(node, {"accelerator": "cpu", "devices": 2, "strategy": named}))
        assert isinstance(chosen, DDPStrategy)
        assert pl.Trainer(accelerator="cpu", devices=2, strategy=chosen, logger=False).world_size == 2
    assert strategy(OmegaConf.merge(node, {"devices": 2, "strategy": "ddp_spawn"})) == "ddp_spawn"


@pytest.mark.parametrize("callbacks", ["none", "default"])
def test_debug_quick_goes_with_every_choice_of_callbacks(pretrain: Command, callbacks: str) -> None:
    assert pretrain(*TINY, "debug=quick", f"callbacks={callbacks}", "hydra.run.dir=run") == 0
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


def test_rows_come_with_optimiser_steps_not_with_batches(pretrain: Command) -> None:
    """22 batches an epoch, two a step: 22 steps in two epochs."""
    words = ("trainer.accumulate_grad_batches=2", "trainer.max_epochs=2", "trainer.log_every_n_steps=4")
    assert pretrain(*TINY, *words, "hydra.run.dir=run") == 0
    rows = read_rows(Path("run/metrics.jsonl"))
    assert [row["step"] for row in rows if "train/loss" in row] == [3, 7, 11, 15, 19]
    assert all("train/uniformity" in row and "train/lr" in row for row in rows if "train/loss" in row)


def test_images_that_are_the_only_ones_of_their_class_are_not_probed(pretrain: Command, workplace: Path) -> None:
    for name in "abcdef":
        for part in ("train", "test"):
            file = workplace / "images" / part / name / "one.png"
            file.parent.mkdir(parents=True)
            Image.new("L", (8, 8), 20 * (ord(name) - 96)).save(file)
    own = (
        "data=folder",
        "encoder=small",
        "data.root=images",
        "data.image_size=8",
        "batch_size=6",
        "projector.out_features=4",
    )
    words = [word for word in TINY if not word.startswith(("batch_size", "projector.out"))]
    assert pretrain(*words, *own, "hydra.run.dir=run") == 0


@pytest.mark.slow
def test_a_complete_job_without_the_metric_stays_complete(pretrain: Command) -> None:
    sweep = ("-m", *TINY, "seed=0,1", "trainer.limit_train_batches=1", "hydra.sweep.dir=sweep")
    assert pretrain(*sweep) == 0
    before = Path("sweep/1/metrics.json").stat().st_mtime_ns
    assert pretrain(*sweep) == 0
    assert Path("sweep/1/metrics.json").stat().st_mtime_ns == before
    assert not Path("sweep/1/error.txt").exists()


@pytest.mark.slow
def test_a_run_starts_from_weights_and_reads_them_once(
    pretrain: Command, trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """From the weights and the normalisation of a run; a resumed run has both in its checkpoint."""
    before = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    shutil.copytree(trained, "first")
    words = [*TINY, "optimizer.lr=0", "encoder.weights=first", "data=digits"]
    assert pretrain(*words, "hydra.run.dir=second") == 0
    out = capfd.readouterr().out
    assert "first/checkpoints/last.ckpt: 18 tensors under 'state_dict.encoder.' are the encoder's" in out
    assert "the weights' mean and std" in out
    after = torch.load("second/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    learned = [key for key in before if key.startswith(("encoder.", "normalize.")) and "running" not in key]
    learned = [key for key in learned if "num_batches" not in key]
    assert len(learned) == 11
    assert all(torch.equal(before[key], after[key]) for key in learned)

    shutil.rmtree("first")
    assert pretrain("resume=second", "trainer.max_epochs=2", *FEW) == 0
    out = capfd.readouterr().out
    assert f"the model before the first step is not evaluated: no checkpoint at {Path('first').absolute()}" in out
    assert {"knn_top1", "pixels_knn_top1"} <= set(figures("second"))
    assert "untrained_knn_top1" not in figures("second")
