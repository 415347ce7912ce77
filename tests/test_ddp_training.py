"""Two gloo processes under Lightning train as one does: the same views, the same losses, the same weights."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Command

import contrast
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


def on_two_ranks(*words: str, after: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """The run at its end; one that hangs is a failure with the traceback of every thread of both ranks."""
    command = [sys.executable, str(SCRIPT), *words, *TWO, *after]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
    try:
        out, err = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)
        pytest.fail(f"after 600 seconds:\n{process.communicate()[1]}")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


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
        ("method=clip",),  # with the same captions on both ranks
        ("method=seed", "key.weights={trained}", "projector.out_features=32"),
    ],
    ids=["simclr", "moco", "instdisc", "near draws", "clip", "seed"],
)
def test_two_ranks_train_as_one_process(pretrain: Command, trained: Path, method: tuple[str, ...]) -> None:
    setting = (*SETTING, *(word.format(trained=trained) for word in method))
    assert pretrain(*setting, "hydra.run.dir=one") == 0
    done = on_two_ranks(*setting, "hydra.run.dir=two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the run folder is") == 1  # one rank speaks
    assert not Path("two_2").exists()  # one folder for both

    one, two = (torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 3
    assert len(two["generators"]) == 2
    for name in ("train/loss", "train/grad_norm", "train/agreement" if "method=seed" in method else "train/top1"):
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
    assert "error: batch_size=15 does not divide equally among 2 devices" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_sharded_weights_train_as_ddp(workplace: Path, checkpointing: str) -> None:
    setting = (*SETTING, "scheduler=constant")
    sharded = ("trainer.strategy=fsdp2", f"activation_checkpointing={checkpointing}")
    done = on_two_ranks(*setting, "trainer.max_epochs=2", "hydra.run.dir=whole")
    assert done.returncode == 0, done.stderr
    done = on_two_ranks(*setting, "hydra.run.dir=shards", after=sharded)
    assert done.returncode == 0, done.stderr
    assert column("shards", "train/loss") == pytest.approx(column("whole", "train/loss")[:3], rel=1e-4)
    done = on_two_ranks("resume=shards", "trainer.max_epochs=2", after=sharded)
    assert done.returncode == 0, done.stderr
    whole, shards = (torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("whole", "shards"))
    assert whole.keys() == shards.keys()
    assert shards["global_step"] == 6
    for name in ("train/loss", "train/grad_norm"):
        assert column("shards", name) == pytest.approx(column("whole", name), rel=1e-4), name
    assert whole["state_dict"].keys() == shards["state_dict"].keys()
    for key, value in whole["state_dict"].items():
        torch.testing.assert_close(shards["state_dict"][key], value, rtol=1e-4, atol=1e-6)
    groups = (
        [len(group["params"]) for group in each["optimizer_states"][0]["param_groups"]] for each in (whole, shards)
    )
    assert next(groups) == next(groups)  # class token and position embedding are not decayed
    images = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(contrast.load("shards")(images), contrast.load("whole")(images), rtol=1e-2, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "tolerance"),
    [
        (("negatives=queue", "negatives.size=100"), 1e-4),
        (("method=instdisc", "negatives.draws=20", "trainer.precision=bf16-mixed"), 2e-2),
        (("encoder=timm", "encoder.name=vit_tiny_patch16_224", "+encoder.patch_size=4", "+encoder.depth=2"), 1e-4),
    ],
    ids=["queue", "bank in bf16-mixed", "timm"],
)
def test_sharded_weights_with(workplace: Path, setting: tuple[str, ...], tolerance: float) -> None:
    if "encoder=timm" in setting:
        pytest.importorskip("timm", reason="pip install 'contrast-learning[timm]'")
    words = (*SETTING, *setting, "metric=loss", "hydra.sweep.dir=both")
    done = on_two_ranks("-m", *words, after=("trainer.strategy=ddp,fsdp2",))
    assert done.returncode == 0, done.stderr
    for name in ("train/loss", "train/grad_norm"):
        assert len(column("both/1", name)) == 3
        assert column("both/1", name) == pytest.approx(column("both/0", name), rel=tolerance), name
    whole, shards = (torch.load(f"both/{job}/checkpoints/last.ckpt", weights_only=True) for job in (0, 1))
    assert whole["state_dict"].keys() == shards["state_dict"].keys()
    for key, value in whole["state_dict"].items():
        torch.testing.assert_close(shards["state_dict"][key], value, rtol=tolerance, atol=tolerance / 100)
