"""Two gloo processes under Lightning train as one does: the same views, the same losses, the same weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, Command

from contrast.run.metrics import read_rows

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "pretrain.py"
# no batch norm: its statistics are those of a rank
SETTING = (
    *(word for word in TINY if not word.startswith(("encoder.", "projector."))),
    "encoder=vit",
    "projector=moco_v2",
    "callbacks=none",
    "optimizer=sgd",
    "optimizer.lr=0.01",
    "trainer.limit_train_batches=3",
    "trainer.log_every_n_steps=1",
)
TWO = ("trainer.devices=2", "trainer.strategy=ddp")


def on_two_ranks(*words: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words, *TWO], env=environment, capture_output=True, text=True, timeout=240
    )


def column(run: str, name: str) -> list[float]:
    return [row[name] for row in read_rows(Path(run, "metrics.jsonl")) if name in row]


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        ("method=simclr",),
        ("method=moco", "negatives.size=100", "negatives.in_batch=true", "key.momentum=0.5"),
        ("method=instdisc", "negatives.draws=20"),
        ("method=instdisc", "views.views=2", "negatives.sampler=null", "negatives.proximity=0.5", "negatives.draws=20"),
    ],
    ids=["simclr", "moco", "instdisc", "near draws"],
)
def test_two_ranks_train_as_one_process(pretrain: Command, method: tuple[str, ...]) -> None:
    setting = (*SETTING, *method)
    assert pretrain(*setting, "hydra.run.dir=one") == 0
    done = on_two_ranks(*setting, "hydra.run.dir=two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the run folder is") == 1  # one rank speaks
    assert not Path("two_2").exists()  # one folder for both

    one, two = (torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 3
    assert len(two["generators"]) == 2
    for name in ("train/loss", "train/grad_norm", "train/top1"):
        assert len(column("one", name)) == 3
        assert column("two", name) == pytest.approx(column("one", name), rel=1e-4), name
    for key, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_ranks_resume(workplace: Path) -> None:
    setting = (*SETTING, "scheduler=constant", "encoder.dropout=0.1")  # the length of the run shapes no step
    assert on_two_ranks(*setting, "trainer.max_epochs=2", "hydra.run.dir=whole").returncode == 0
    assert on_two_ranks(*setting, "hydra.run.dir=cut").returncode == 0
    done = on_two_ranks("resume=cut", "trainer.max_epochs=2")
    assert done.returncode == 0, done.stderr
    whole, cut = (torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("whole", "cut"))
    assert cut["global_step"] == 6
    for key, value in whole["state_dict"].items():
        assert torch.equal(cut["state_dict"][key], value), key
    assert column("cut", "train/loss") == column("whole", "train/loss")


@pytest.mark.slow
def test_a_batch_that_the_ranks_cannot_share(workplace: Path) -> None:
    done = on_two_ranks(*SETTING, "batch_size=15", "hydra.run.dir=run")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "error: a batch of 15 images does not divide equally among 2 ranks" in done.stderr
