"""A full disk ends a run in one line: where there is no room, the last whole checkpoint, and how to go on."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import TINY, Command, Disk, called
from test_resume import assert_same, checkpoint

from contrast.atomic import replacing
from contrast.cli import commands

EPOCH = 4
RUN = (
    *TINY,
    "callbacks=none",
    "trainer.max_epochs=4",
    f"trainer.limit_train_batches={EPOCH}",
    "+callbacks.fill._target_=test_disk.Fill",
    "+callbacks.fill.at=0",
)


class Fill(pl.Callback):
    """Leaves no room on the disk of the run at the start of step `at` (from 1; 0: never), until `frees` of it goes."""

    def __init__(self, at: int = 0, what: str = "bytes", frees: bool = False) -> None:
        self.at, self.what, self.frees = at, what, frees

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step + 1 == self.at and trainer.is_global_zero:
            fill(Path(trainer.default_root_dir).parent, self.what)

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.frees:
            free(Path(trainer.default_root_dir).parent)


def fill(folder: Path, what: str = "bytes") -> None:
    """Takes all bytes of a disk, or all of its inodes."""
    filler = folder / "filler"
    filler.mkdir(exist_ok=True)
    try:
        if what == "inodes":
            for number in range(10**6):
                (filler / str(number)).touch()
        with (filler / "zeros").open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    pass
    except OSError:
        pass


def free(folder: Path) -> None:
    for file in (folder / "filler").iterdir():
        file.unlink()


def the_line(capfd: pytest.CaptureFixture[str], status: int) -> str:
    """The one line that a run left on stderr, warnings aside."""
    assert status == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_an_error_of_any_library_is_that_of_the_full_disk(disk: Disk) -> None:
    place = disk("size=300k")
    with pytest.raises(OSError, match="No space left") as error, replacing(place / "weights.pt") as temporary:
        torch.save(torch.zeros(200_000), temporary)  # torch: unexpected pos 576 vs 534
    assert error.value.filename == str(place / "weights.pt")
    assert list(place.iterdir()) == []
    with replacing(place / "a") as temporary:  # the room of the broken file is free again
        temporary.write_bytes(bytes(200_000))


def test_full_before_the_start(pretrain: Command, disk: Disk, capfd: pytest.CaptureFixture[str]) -> None:
    place = disk("size=100k")
    fill(place)
    line = the_line(capfd, pretrain(*RUN, f"hydra.run.dir={place / 'run'}"))
    assert "no space left on device" in line.lower()
    assert str(place) in line
    assert not (place / "run").exists()


def test_no_room_for_the_lock(pretrain: Command, disk: Disk, capfd: pytest.CaptureFixture[str]) -> None:
    place = disk("size=1m,nr_inodes=3")  # for the root, the folder and config.yaml
    line = the_line(capfd, pretrain(*RUN, f"hydra.run.dir={place / 'run'}"))
    assert "but for no more files" in line
    assert list(place.iterdir()) == []


def test_no_room_for_the_first_checkpoint(pretrain: Command, disk: Disk, capfd: pytest.CaptureFixture[str]) -> None:
    place = disk("size=60k")
    status = pretrain(*RUN, f"hydra.run.dir={place / 'run'}")
    out, err = capfd.readouterr()
    assert f"a checkpoint takes about 0.1 MB: {place} has room for 0.0 MB" in out
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2
    assert f"no space left on device: {place} has room for 0.0 MB" in line
    assert line.endswith("make room, and give the command again")


@pytest.mark.parametrize(
    ("what", "at", "every_step", "step"),
    [
        ("bytes", EPOCH + 2, False, EPOCH),  # the next checkpoint does not fit
        pytest.param("inodes", 2 * EPOCH + 1, False, 2 * EPOCH, marks=pytest.mark.slow),
        pytest.param("bytes", EPOCH + 2, True, EPOCH, marks=pytest.mark.slow),  # nor does the next row of the log
        pytest.param("bytes", 4 * EPOCH, False, 3 * EPOCH, marks=pytest.mark.slow),  # nor the last checkpoint
    ],
)
def test_full_in_the_middle(
    pretrain: Command,
    disk: Disk,
    capfd: pytest.CaptureFixture[str],
    what: str,
    at: int,
    every_step: bool,
    step: int,
) -> None:
    place = disk("size=3m,nr_inodes=60")
    setting = (*RUN, "checkpoints.every_n_epochs=2", f"trainer.log_every_n_steps={1 if every_step else EPOCH}")
    assert pretrain(*setting, "hydra.run.dir=whole") == 0
    run = place / "run"
    words = (f"callbacks.fill.at={at}", f"+callbacks.fill.what={what}")
    line = the_line(capfd, pretrain(*setting, *words, f"hydra.run.dir={run}"))
    assert f"no space left on device: {place} has room for " in line
    assert f"{run}/checkpoints/last.ckpt of step {step}: make room, then contrast resume={run}" in line
    assert checkpoint(str(run))["global_step"] == step
    assert not (run / "metrics.json").exists()

    free(place)
    assert pretrain("trust=true", f"resume={run}", "callbacks.fill.at=0") == 0
    assert_same(str(run), "whole")


@pytest.mark.slow
def test_a_job_of_a_sweep_is_named_and_the_others_run(
    pretrain: Command, disk: Disk, capfd: pytest.CaptureFixture[str]
) -> None:
    place = disk("size=5m")
    sweep = (*RUN, "-m", "seed=0,1", "metric=loss", "+callbacks.fill.frees=true", f"hydra.sweep.dir={place}")
    assert pretrain(*sweep, f"callbacks.fill.at=0,{EPOCH + 2}") == 1
    out, err = capfd.readouterr()
    failed = [line for line in err.splitlines() if " failed: " in line]
    assert len(failed) == 2
    assert failed[0].startswith(f"job 1 failed: no space left on device: {place} has room")
    assert f"last.ckpt of step {EPOCH}: make room" in failed[0]
    assert "Traceback" not in out + err
    assert sorted(path.parent.name for path in place.rglob("metrics.json")) == ["0", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "at"), [("300k", 0), ("4m", 3)])
def test_no_room_for_the_files_of_a_sweep(
    pretrain: Command, disk: Disk, capfd: pytest.CaptureFixture[str], size: str, at: int
) -> None:
    """Neither for those that Hydra begins with nor, later, for the table and the page."""
    place = disk(f"size={size}")
    if at == 0:
        fill(place)
    words = (*RUN, "-m", "seed=0,1", "metric=loss", "report=true", f"hydra.sweep.dir={place / 's'}")
    line = the_line(capfd, pretrain(*words, f"callbacks.fill.at={at}"))
    assert line == (
        f"error: no space left on device: {place} has room for 0.0 MB, and more is needed: make room, and give the "
        "command again"
    )
    assert (place / "s").exists() == (at > 0)
    if at:
        free(place / "s")
        assert pretrain(*words, "callbacks.fill.at=0") == 0
        assert (place / "s" / "sweep.csv").exists()


@pytest.mark.parametrize(
    ("name", "words", "size", "left"),
    [
        ("embed", ("out=DISK/vectors.npy",), "100k", []),  # for the first part of the vectors
        ("embed", ("out=DISK/vectors.npy", "neighbours=3"), "560k", ["joined.npy"]),  # for those scaled to length 1
        ("embed", ("out=DISK/vectors.csv",), "540k", ["joined.npy"]),  # for the table
        ("export", ("out=DISK/new/encoder",), "4k", []),
        ("export", ("out=DISK/new/encoder", "format=hub"), "4k", []),
        ("export", ("out=DISK/new/encoder", "format=torch"), "12k", []),
        ("report", ("out=DISK/report.html",), "32k", []),
        ("evaluate", ("protocol=knn", "hydra.run.dir=DISK/figures"), "4k", []),
    ],
)
def test_full_for_what_comes_out_of_a_run(
    trained: Path,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    disk: Disk,
    capfd: pytest.CaptureFixture[str],
    name: str,
    words: tuple[str, ...],
    size: str,
    left: list[str],
) -> None:
    if "format=hub" in words:
        pytest.importorskip("huggingface_hub")
    place = disk(f"size={size}")
    words = (f"checkpoint={trained}", *(word.replace("DISK", str(place)) for word in words))
    cpu = () if name == "export" else ("trainer.accelerator=cpu",)
    status = called(getattr(commands, name), monkeypatch, *words, *cpu)
    line = the_line(capfd, status)
    assert line.startswith(f"error: no space left on device: {place} has room for ")
    assert line.endswith("and more is needed: make room, and give the command again")
    assert {path.suffix for path in place.rglob("*.*")} <= ({".parts", ".npy", ".csv"} if name == "embed" else set())
    assert sorted(path.name for path in place.rglob("*.npy") if "_0" not in path.name) == left
    if name == "embed":
        subprocess.run(["mount", "-o", "remount,size=20m", place], check=True)
        assert called(commands.embed, monkeypatch, *words, *cpu) == 0
        assert not list(place.glob("*.parts"))


def test_no_room_for_a_model_card(
    trained: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch, disk: Disk, capfd: pytest.CaptureFixture[str]
) -> None:
    """The weights fit, and the card does not: no half of it is left, which a later export would keep."""
    pytest.importorskip("huggingface_hub")
    place = disk("size=32k")
    words = (f"checkpoint={trained}", f"out={place / 'hub'}", "format=hub")
    the_line(capfd, called(commands.export, monkeypatch, *words))
    assert {path.name for path in (place / "hub").iterdir()} == {"config.json", "model.safetensors"}
    subprocess.run(["mount", "-o", "remount,size=20m", place], check=True)
    assert called(commands.export, monkeypatch, *words) == 0
    assert "README.md is the model card" in capfd.readouterr().out


def test_no_room_for_word_vectors(words: Command, disk: Disk, capfd: pytest.CaptureFixture[str]) -> None:
    place = disk("size=2700k")  # for two checkpoints of 1.2 MB, and not for one beside 1.7 MB of text
    run = place / "run"
    Path("text.txt").write_text(" ".join(f"w{i % 997}" for i in range(20_000)))
    small = ("experiment=skipgram", "data.path=text.txt", "data.min_count=1", "encoder.num_features=150")
    small += ("logger=csv", "trainer.accelerator=cpu", "model.workers=1", "trainer.limit_train_batches=1")
    line = the_line(capfd, words(*small, "evaluation.files=[vectors.txt]", f"hydra.run.dir={run}"))
    assert f"{run}/checkpoints/last.ckpt of step " in line
    assert line.endswith(f"make room, then contrast resume={run}")


@pytest.mark.slow
def test_full_on_two_ranks(workplace: Path, disk: Disk) -> None:
    from test_ddp_training import SETTING, on_two_ranks

    place = disk("size=300m")
    fill_it = ("+callbacks.fill._target_=test_disk.Fill", "+callbacks.fill.at=5")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = on_two_ranks(*SETTING, *fill_it, "trainer.max_epochs=3", f"hydra.run.dir={place / 'run'}")
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: rank 0: no space left on device: {place}")
    assert "last.ckpt of step 3: make room" in last
    assert "Traceback" not in done.stderr
