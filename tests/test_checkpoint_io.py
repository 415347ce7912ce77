"""Checkpoints survive kill -9, load without running code, and resume bit for bit."""

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from contrast.errors import InputError
from contrast.run.checkpoints import AtomicCheckpointIO, Checkpoints
from contrast.run.metrics import MetricsLog, read_rows

# Children are forked from one server that has done the slow imports, so that killing a process costs no start-up.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["contrast.run.checkpoints"])


class Loader:
    """Ten batches of four in an order that depends on the epoch, able to start in the middle."""

    data = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))

    def __init__(self) -> None:
        self.epoch = 0
        self.position = 0
        self.sampler = self  # where Lightning looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Iterator[torch.Tensor]:
        start, self.position = self.position, 0
        order = torch.randperm(40, generator=torch.Generator().manual_seed(self.epoch))
        for i in range(start, 10):
            self.position = (i + 1) % 10
            yield self.data[order[4 * i : 4 * i + 4]]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Model(pl.LightningModule):
    """Everything a resume has to restore: momentum, a schedule, dropout. Sends itself `how` at `fatal_step`."""

    def __init__(self, fatal_step: int, how: int) -> None:
        super().__init__()
        self.fatal_step, self.how = fatal_step, how
        self.net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if self.global_step == self.fatal_step:
            os.kill(os.getpid(), self.how)
        loss = self.net(batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("online/knn_top1", float(self.current_epoch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def _fit(folder: Path, resume: Path | None, fatal_step: int, how: int, every_n_steps: int) -> None:
    pl.seed_everything(0)
    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        devices=1,
        logger=[MetricsLog(folder)],
        log_every_n_steps=1,
        callbacks=[Checkpoints(folder / "checkpoints", every_n_epochs=2, every_n_steps=every_n_steps)],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Model(fatal_step, how)
    trainer.fit(model, Loader(), ckpt_path=resume)
    torch.save(model.state_dict(), folder / "final.pt")


def _save_for_ever(path: Path, counts: Any) -> None:
    for count in itertools.count(1):
        AtomicCheckpointIO().save_checkpoint({"count": count, "weights": torch.full([500_000], float(count))}, path)
        counts.value = count


def train(folder: Path, resume: Path | None = None, fatal_step: int = -1, how: int = 0, every_n_steps: int = 0) -> int:
    """Trains in a process of its own; its exit code, negative where a signal ended it."""
    process = PROCESSES.Process(target=_fit, args=(folder, resume, fatal_step, how, every_n_steps))
    process.start()
    process.join(timeout=60)
    assert process.exitcode is not None
    return process.exitcode


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder) == 0
    return folder


@pytest.mark.slow
def test_a_killed_writer_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for attempt in range(8):
        saved = PROCESSES.Value("i", 0, lock=False)
        writer = PROCESSES.Process(target=_save_for_ever, args=(path, saved))
        writer.start()
        while saved.value < 2:
            assert writer.is_alive()
            time.sleep(0.001)
        time.sleep(0.001 * attempt)
        writer.kill()
        writer.join()
        checkpoint = AtomicCheckpointIO().load_checkpoint(path)
        assert saved.value <= checkpoint["count"] <= saved.value + 1
        assert torch.equal(checkpoint["weights"], torch.full([500_000], float(checkpoint["count"])))
        assert len(list(tmp_path.iterdir())) <= 2  # the checkpoint and what the last killed writer left


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".writing-123-last.ckpt").write_bytes(b"half")
    (tmp_path / ".hidden").write_bytes(b"mine")
    AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    assert {file.name for file in tmp_path.iterdir()} == {"last.ckpt", ".hidden"}


def test_a_failed_save_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"step": 2, "function": lambda: None}, path)
    assert AtomicCheckpointIO().load_checkpoint(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_loading_runs_no_code(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"path": Path("x")}, tmp_path / "last.ckpt")
    with pytest.raises(Exception, match="UnpicklingError"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt", weights_only=False) == {"path": Path("x")}


def test_an_uninterrupted_run_keeps_last_and_every_second_epoch(whole: Path) -> None:
    names = {file.name for file in (whole / "checkpoints").iterdir()}
    assert names == {"last.ckpt", "epoch_00002.ckpt", "epoch_00004.ckpt"}
    last = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 40
    assert {"callbacks", "loops", "optimizer_states", "lr_schedulers", "generators"} <= last.keys()
    assert torch.load(whole / "checkpoints" / "epoch_00002.ckpt", weights_only=True)["global_step"] == 20


@pytest.mark.parametrize(
    ("fatal_step", "how", "every_n_steps", "saved_step"),
    [
        (13, signal.SIGTERM, 0, 14),  # mid-epoch: the step at which the signal arrived is finished and saved
        (19, signal.SIGTERM, 0, 20),  # at the last step of an epoch
        (13, signal.SIGKILL, 4, 12),  # mid-epoch, from the last regular checkpoint
        (23, signal.SIGKILL, 0, 20),  # back to the end of the last epoch
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(
    whole: Path, tmp_path: Path, fatal_step: int, how: int, every_n_steps: int, saved_step: int
) -> None:
    code = train(tmp_path, fatal_step=fatal_step, how=how, every_n_steps=every_n_steps)
    assert code == (-signal.SIGKILL if how == signal.SIGKILL else 0)  # Lightning's SIGTERMException carries no code
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == saved_step
    assert not (tmp_path / "final.pt").exists()
    assert train(tmp_path, resume=last, every_n_steps=every_n_steps) == 0

    expected, resumed = torch.load(whole / "final.pt"), torch.load(tmp_path / "final.pt")
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert {file.name for file in last.parent.iterdir()} == {
        "last.ckpt",
        "epoch_00002.ckpt",
        "epoch_00004.ckpt",
    }
    assert read_rows(tmp_path / "metrics.jsonl") == read_rows(whole / "metrics.jsonl")


def test_negative_periods_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="every -1 epochs"):
        Checkpoints(tmp_path, every_n_epochs=-1)
    with pytest.raises(InputError, match="at least 1, not 0"):
        Checkpoints(tmp_path, last_every_n_epochs=0)


def test_the_last_checkpoint_may_be_refreshed_less_often_but_never_misses_the_end(tmp_path: Path) -> None:
    seen = []

    class Look(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            last = tmp_path / "last.ckpt"
            seen.append(torch.load(last, weights_only=True)["global_step"] if last.exists() else None)

    trainer = pl.Trainer(
        max_epochs=5,
        accelerator="cpu",
        logger=False,
        callbacks=[Checkpoints(tmp_path, every_n_epochs=0, last_every_n_epochs=2), Look()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(-1, 0), Loader())
    steps = trainer.global_step // 5
    assert seen == [None, None, 2 * steps, 2 * steps, 4 * steps]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 5 * steps


@pytest.mark.parametrize("end", [{"max_steps": 3}, {"max_steps": 10**6, "max_epochs": 1}])
def test_a_run_that_ends_by_its_steps_has_its_last_weights(tmp_path: Path, end: dict[str, int]) -> None:
    trainer = pl.Trainer(
        **{"max_epochs": 100, **end},
        accelerator="cpu",
        logger=False,
        callbacks=[Checkpoints(tmp_path, every_n_epochs=0, last_every_n_epochs=50)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(-1, 0), Loader())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == trainer.global_step > 0
