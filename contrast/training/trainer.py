"""What every kind of pretraining shares: its trainer, its loggers, how a run ends."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from contrast.evaluation.encoder import checkpoint_file
from contrast.run.checkpoints import AtomicCheckpointIO, Checkpoints
from contrast.run.environment import write_environment
from contrast.run.metrics import MetricsLog, read_rows
from contrast.training.build import plain
from contrast.training.callbacks.progress import RunProgress


def make_trainer(cfg: DictConfig, run_dir: Path, callbacks: list[pl.Callback], steps_per_epoch: int) -> pl.Trainer:
    """A trainer that checkpoints, logs and shows progress in `run_dir`, with these callbacks besides."""
    write_environment(run_dir)
    return instantiate(
        cfg.trainer,
        logger=[MetricsLog(run_dir), *loggers(cfg, run_dir)],
        callbacks=[Checkpoints(run_dir / "checkpoints", **cfg.checkpoints), RunProgress(), *callbacks],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=str(run_dir),
        log_every_n_steps=min(cfg.trainer.log_every_n_steps, max(1, steps_per_epoch)),
    )


def loggers(cfg: DictConfig, run_dir: Path) -> list[Any]:
    """What logs besides metrics.jsonl; the jobs of a sweep are one group."""
    hydra = HydraConfig.get()
    group = Path(hydra.sweep.dir).name if hydra.mode == RunMode.MULTIRUN else None
    name = f"{group}/{hydra.job.num}" if group else run_dir.name
    made = [instantiate(node, _partial_=True) for node in (cfg.logger or {}).values()]
    return [make(run_dir=run_dir, name=name, group=group, config=plain(cfg)) for make in made]


@contextmanager
def ending(run_dir: Path) -> Iterator[None]:
    """Closes W&B's run whatever happens, and gives SIGTERM a status of its own."""
    try:
        yield
    except SIGTERMException:
        # Lightning would end with status 0, as if the run were complete
        say(f"told to end: the last step is saved, contrast-pretrain resume={run_dir} continues")
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish()


def resume_point(resume: str | None) -> str | None:
    """The checkpoint to continue from; None for a new run."""
    return None if resume is None else str(checkpoint_file(resume))


def last_loss(run_dir: Path) -> dict[str, float]:
    """The loss of the last step that was logged, if one was: a run may be shorter than the interval of its log."""
    file = run_dir / "metrics.jsonl"
    losses = [row["train/loss"] for row in read_rows(file) if "train/loss" in row] if file.exists() else []
    return {"loss": float(losses[-1])} if losses else {}


@rank_zero_only
def say(text: str) -> None:
    print(text, flush=True)
