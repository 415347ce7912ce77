"""A run that is interrupted at any moment and resumed ends as if nothing had happened, bit for bit."""

import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import FEW, TINY, Command, figures

import contrast
from contrast.run.metrics import read_rows

EPOCH = 8
STEPS = 3 * EPOCH
RUN = (
    *TINY,
    "trainer.max_epochs=3",
    f"trainer.limit_train_batches={EPOCH}",
    "trainer.log_every_n_steps=1",
    "callbacks.online_knn.every_n_epochs=1",
    "callbacks.online_linear.every_n_epochs=2",
    "+callbacks.interrupt._target_=test_resume.Interrupt",
    "+callbacks.interrupt.at=0",
)
TRUST = "trust=[test_resume.Interrupt]"  # a class of one's own, which a resumed run's files name


class Interrupt(pl.Callback):
    """Ends the process at a moment of step `at` (from 1; 0: never)."""

    def __init__(self, at: int = 0, moment: str = "start", how: str = "SIGKILL") -> None:
        self.at, self.moment, self.how = at, moment, how

    def end(self) -> None:
        if self.how == "raise":
            raise RuntimeError("interrupted")
        os.kill(os.getpid(), getattr(signal, self.how))

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step + 1 == self.at and self.moment == "start":
            self.end()

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step + 1 == self.at and self.moment == "backward":
            self.end()

    def on_save_checkpoint(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step >= self.at > 0 and self.moment == "write":
            os.fsync = lambda _: self.end()  # the new file is whole, but not yet in the place of the old one

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step >= self.at > 0 and self.moment == "epoch end":
            self.end()


def start(*words: str) -> subprocess.Popen:
    """`contrast-pretrain` in a process of its own, with as many threads as this one."""
    paths = [str(Path(contrast.__file__).parents[1]), str(Path(__file__).parent)]
    threads = str(torch.get_num_threads())
    return subprocess.Popen(
        [sys.executable, "-c", "from contrast.cli.commands import pretrain; pretrain()", *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": threads},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Where two checkpoints differ in any bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}, key=str):
            if key not in a or key not in b:
                yield f"{path}.{key} is in one alone"
            else:
                yield from differences(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{path}.{i}")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype != b.dtype or not torch.equal(a, b):
            yield path
    elif a != b:
        yield f"{path}: {a} and {b}"


def checkpoint(run: str) -> dict[str, Any]:
    """last.ckpt, less what is of the clock or says how the run was interrupted."""
    saved = torch.load(Path(run, "checkpoints", "last.ckpt"), weights_only=True)
    del saved["callbacks"]["Throughput"]["seconds"]
    for key in ("resume", "callbacks"):
        del saved["config"][key]
    return saved


def rows(run: str) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if "second" not in name}
        for row in read_rows(Path(run, "metrics.jsonl"))
    ]


def assert_same(run: str, whole: str) -> None:
    """Every figure, every logged row, the weights, the optimiser, the schedule and the probe are those of `whole`."""
    assert list(differences(checkpoint(run), checkpoint(whole))) == []
    assert rows(run) == rows(whole)
    ours, theirs = figures(run), figures(whole)
    assert {key: value for key, value in ours.items() if "second" not in key} == {
        key: value for key, value in theirs.items() if "second" not in key
    }


# --- a process that is killed


@pytest.mark.slow
def test_sigterm_in_the_middle_of_an_epoch(pretrain: Command, capfd: pytest.CaptureFixture[str]) -> None:
    setting = (*RUN, *FEW, "evaluation.untrained=false", "evaluation.pixels=false", "+head/temperature=cosine")
    assert pretrain(*setting, "hydra.run.dir=whole") == 0
    process = start(*setting, "hydra.run.dir=cut", "callbacks.interrupt.at=12", "+callbacks.interrupt.how=SIGTERM")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "Traceback" not in err
    told = [line for line in (out + err).splitlines() if "resume=" in line]
    assert len(told) == 1
    assert str(Path("cut").absolute()) in told[0]
    assert not Path("cut/metrics.json").exists()
    assert EPOCH < checkpoint("cut")["global_step"] < 2 * EPOCH

    capfd.readouterr()
    assert pretrain("resume=cut", TRUST, "callbacks.interrupt.at=0") == 0
    assert "other than when the run began: callbacks.interrupt.at: 12 -> 0" in capfd.readouterr().out
    assert_same("cut", "whole")
    saved = checkpoint("cut")
    assert saved["global_step"] == saved["batch_number"] == STEPS
    assert saved["state_dict"]["head.temperature.step"] == STEPS
    assert "classifier" in saved["callbacks"]["OnlineLinear"]  # the comparison had a probe to compare
    temperatures = [row["train/temperature"] for row in rows("cut") if "train/temperature" in row]
    assert len(temperatures) == STEPS
    # of step t the temperature after t - 1 steps
    expected = [0.1 + 0.4 * (1 + math.cos(math.pi * t / STEPS)) / 2 for t in range(STEPS)]
    assert temperatures == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "moment", "every"), [(12, "backward", 0), (12, "write", 1), (16, "epoch end", 1), (16, "write", 5)]
)
def test_kill_9(pretrain: Command, at: int, moment: str, every: int) -> None:
    setting = (*RUN, f"checkpoints.every_n_steps={every}", "checkpoints.every_n_epochs=1")
    assert pretrain(*setting, "hydra.run.dir=whole") == 0
    interrupt = (f"callbacks.interrupt.at={at}", f"+callbacks.interrupt.moment='{moment}'")
    process = start(*setting, "hydra.run.dir=cut", *interrupt)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert 0 < checkpoint("cut")["global_step"] < at + 1
    assert pretrain("resume=cut", TRUST, "callbacks.interrupt.at=0") == 0
    assert_same("cut", "whole")
    # what the killed writer left is gone
    assert {path.name for path in Path("cut/checkpoints").iterdir()} == {"last.ckpt"} | {
        f"epoch_0000{epoch}.ckpt" for epoch in (1, 2, 3)
    }


@pytest.mark.slow
def test_kill_9_at_any_moment_again_and_again(pretrain: Command) -> None:
    setting = (*RUN, "checkpoints.every_n_steps=1", "trainer.max_epochs=20")
    assert pretrain(*setting, "hydra.run.dir=whole") == 0
    dice = random.Random(0)
    last = Path("cut/checkpoints/last.ckpt")
    words = (*setting, "hydra.run.dir=cut")
    reached = [0]
    for _ in range(3):
        before = last.stat().st_mtime_ns if last.exists() else 0
        process = start(*words)
        while process.poll() is None and (not last.exists() or last.stat().st_mtime_ns == before):
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.5))
        process.kill()
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        reached.append(checkpoint("cut")["global_step"])
        words = ("resume=cut", TRUST)
    assert reached == sorted(set(reached))  # each time it went on from where it was
    assert pretrain("resume=cut", TRUST) == 0
    assert list(differences(checkpoint("cut"), checkpoint("whole"))) == []
    # A row follows its checkpoint, so each kill may lose one, or at the end of an epoch the probes' part of one.
    kept = {row["step"]: row for row in rows("cut")}
    all_rows = rows("whole")
    assert set(kept) <= {row["step"] for row in all_rows}
    assert all(row | kept.get(row["step"], {}) == row for row in all_rows)  # what was kept is equal
    assert sum(kept.get(row["step"]) != row for row in all_rows) <= 3


# --- a run that ends in an error


def interrupted(pretrain: Command, setting: tuple[str, ...], at: int, moment: str) -> None:
    interrupt = (f"callbacks.interrupt.at={at}", f"+callbacks.interrupt.moment={moment}")
    with pytest.raises(RuntimeError, match="interrupted"):
        pretrain(*setting, "hydra.run.dir=cut", *interrupt, "+callbacks.interrupt.how=raise")


@pytest.mark.parametrize(
    ("at", "moment"), [(12, "backward"), pytest.param(17, "start", marks=pytest.mark.slow)]
)  # 17 begins the third epoch
def test_an_error_in_the_middle(pretrain: Command, at: int, moment: str) -> None:
    setting = (*RUN, "checkpoints.every_n_steps=1", "+head/temperature=learnable", "optimizer=sgd", "optimizer.lr=0.1")
    assert pretrain(*setting, "hydra.run.dir=whole") == 0
    interrupted(pretrain, setting, at, moment)
    assert checkpoint("cut")["global_step"] == at - 1
    assert pretrain("resume=cut", TRUST, "callbacks.interrupt.at=0") == 0
    assert_same("cut", "whole")
    initial = math.log(0.07)
    assert checkpoint("cut")["state_dict"]["head.temperature.log_temperature"] != pytest.approx(initial)


def test_from_the_checkpoint_of_an_epoch(pretrain: Command) -> None:
    measured = ("callbacks.ema.decay=0.9", "callbacks.best.top_k=2", "callbacks.early_stopping.patience=9")
    assert pretrain(*RUN, *measured, "checkpoints.every_n_epochs=1", "hydra.run.dir=whole") == 0
    assert "trained" in checkpoint("whole")
    assert len(checkpoint("whole")["callbacks"]["Best"]["values"]) == 2
    shutil.copytree("whole", "cut")
    Path("cut/metrics.json").unlink()
    assert pretrain("resume=cut/checkpoints/epoch_00001.ckpt", TRUST) == 0
    assert_same("cut", "whole")


@pytest.mark.slow
def test_dropout(pretrain: Command) -> None:
    """The encoder draws from torch's global generator, whose state is in the checkpoint."""
    own = ("encoder=vit", "encoder.dropout=0.3", "batch_size=16", "trainer.limit_train_batches=4")
    setting = (*(word for word in RUN if not word.startswith("encoder.")), *own, "checkpoints.every_n_steps=1")
    assert pretrain(*setting, "hydra.run.dir=whole") == 0
    interrupted(pretrain, setting, 7, "start")
    assert pretrain("resume=cut", TRUST, "callbacks.interrupt.at=0") == 0
    assert_same("cut", "whole")


# --- values that change on the way


def test_a_changed_value_counts_and_is_told(pretrain: Command, capfd: pytest.CaptureFixture[str]) -> None:
    assert pretrain(*RUN, "trainer.max_epochs=1", "hydra.run.dir=a") == 0
    assert pretrain("resume=a", TRUST, "trainer.max_epochs=2", "views.rotation=5") == 0
    told = [line for line in capfd.readouterr().out.splitlines() if line.startswith("other than")]
    assert sorted(told) == [
        "other than when the run began: trainer.max_epochs: 1 -> 2",
        "other than when the run began: views.rotation: 15.0 -> 5",
    ]
    after = checkpoint("a")
    assert after["global_step"] == 2 * EPOCH
    assert after["config"]["views"]["rotation"] == 5


def test_what_the_checkpoint_brings_back_cannot_change(pretrain: Command, capfd: pytest.CaptureFixture[str]) -> None:
    assert pretrain(*RUN, "trainer.max_epochs=1", "hydra.run.dir=a") == 0
    for word in ("head.temperature=0.3", "optimizer.lr=1", "encoder.widths=[8,16]", "same_label=positive"):
        assert pretrain("resume=a", TRUST, "trainer.max_epochs=2", word) == 2
        line = capfd.readouterr().err.splitlines()[-1]
        assert line.startswith(f"error: {word.partition('=')[0]}: "), line
    assert pretrain("resume=a", TRUST, "trainer.max_epochs=2", "metric=none") == 2
    assert "metric=none will not be among the metrics" in capfd.readouterr().err
    assert pretrain("resume=a", TRUST, "trainer.max_epochs=2") == 0  # a refused command leaves the run as it was
