"""What pretraining on images and on text share: the trainer, its loggers, and how a run ends."""

import inspect
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from contrast.errors import InputError
from contrast.evaluation.encoder import checkpoint_file
from contrast.evaluation.report import write_metrics
from contrast.facts import complete
from contrast.run.checkpoints import AtomicCheckpointIO, Checkpoints
from contrast.run.curves import save_curves
from contrast.run.environment import write_environment
from contrast.run.metrics import MetricsLog, read_rows
from contrast.training.build import plain
from contrast.training.callbacks.progress import throughput_of


def check_settings(cfg: DictConfig) -> None:
    """Raises InputError for settings that cannot work together, before anything is read or written."""
    choices = HydraConfig.get().runtime.choices
    for group in ("head", "negatives"):
        if choices.get("output") is not None and choices.get(group) is not None:
            raise InputError(
                f"{group}={choices[group]} and output={choices['output']} both set {group}: an output layer brings its "
                "own, and output=null leaves negatives and head to you"
            )
    if cfg.trainer.get("fast_dev_run"):
        raise InputError(
            "trainer.fast_dev_run leaves neither metrics nor checkpoints: debug=quick takes 2 steps instead"
        )
    if str(cfg.trainer.precision) in ("bf16-true", "16-true"):
        half = str(cfg.trainer.precision).removesuffix("-true")
        raise InputError(
            f"trainer.precision={half}-true would hold weights and running averages in 16 bits, which small updates do "
            f"not change: trainer.precision={half}-mixed"
        )


def train(
    cfg: DictConfig,
    run_dir: Path,
    model: pl.LightningModule,
    data: pl.LightningDataModule,
    callbacks: Sequence[pl.Callback],
    title: str,
    evaluate: Callable[[torch.device], tuple[dict[str, float], str]],
) -> dict[str, float] | None:
    """The course of a run: trains from the start or from `cfg.resume`, and on the first rank evaluates the model.

    callbacks  a `Throughput` and any others
    title      of the first line that is printed
    evaluate   called with the device of the trained model, returns its metrics and a report, which is printed

    Returns all metrics, after they are logged and written to metrics.json; None on other ranks. `loss` is that of the
    last step that was logged, or of the last batch if none was, unless `evaluate` returns one.
    """
    with closing(run_dir):
        trainer = make_trainer(cfg, run_dir, callbacks)
        print_once(f"{cfg.name}: {title}; the run folder is {run_dir}")
        trainer.fit(model, data, ckpt_path=None if cfg.resume is None else str(checkpoint_file(cfg.resume)))
        if not trainer.is_global_zero:
            return None
        metrics, report = evaluate(trainer.strategy.root_device)
        metrics = throughput_of(trainer).metrics() | logged_loss(run_dir) | metrics
        for logger in trainer.loggers:
            logger.log_metrics({f"final/{name}": value for name, value in metrics.items()}, trainer.global_step)
        write_metrics(run_dir, metrics)
        save_curves(run_dir)
        if report:
            print_once(f"{report}\n{run_dir}")
        return metrics


def make_trainer(cfg: DictConfig, run_dir: Path, callbacks: Sequence[pl.Callback]) -> pl.Trainer:
    """A trainer with these callbacks that writes checkpoints and metrics to `run_dir`."""
    write_environment(run_dir)
    return instantiate(
        cfg.trainer,
        strategy=strategy(cfg.trainer),
        logger=[MetricsLog(run_dir), *loggers(cfg, run_dir)],
        callbacks=[Checkpoints(run_dir / "checkpoints", **cfg.checkpoints), *callbacks],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=str(run_dir),
    )


def callbacks_of(cfg: DictConfig, facts: Mapping[str, object]) -> list[pl.Callback]:
    """The callbacks that `cfg` names. One that needs a fact which is None is left out."""
    made = [instantiate(node, _partial_=True) for node in (cfg.get("callbacks") or {}).values()]
    absent = {name for name, fact in facts.items() if fact is None}
    return [complete(make, facts) for make in made if not absent & set(inspect.signature(make.func).parameters)]


def bare_trainer(trainer: DictConfig) -> pl.Trainer:
    """The trainer of the configuration without loggers, to read its devices and the length of training."""
    return instantiate(trainer, logger=False, enable_checkpointing=False, enable_progress_bar=False)


def strategy(trainer: DictConfig) -> str | DDPStrategy:
    """The strategy that the configuration names; where it is DDP, one that does not broadcast buffers.

    Every rank writes the same into the buffers of queues, banks and key encoders, and the running statistics of batch
    norm that are saved are those of the first rank, so nothing has to be sent round in every step.
    """
    if trainer.strategy not in ("auto", "ddp") or bare_trainer(trainer).world_size == 1:
        return trainer.strategy
    return DDPStrategy(broadcast_buffers=False)


def loggers(cfg: DictConfig, run_dir: Path) -> list[Logger]:
    """The loggers in addition to metrics.jsonl; the jobs of a sweep are one group."""
    hydra = HydraConfig.get()
    group = Path(hydra.sweep.dir).name if hydra.mode == RunMode.MULTIRUN else None
    name = f"{group}/{hydra.job.num}" if group else run_dir.name
    made = [instantiate(node, _partial_=True) for node in (cfg.logger or {}).values()]
    return [make(run_dir=run_dir, name=name, group=group, config=plain(cfg)) for make in made]


@contextmanager
def closing(run_dir: Path) -> Iterator[None]:
    """Closes W&B's run whatever happens, and gives SIGTERM its exit status, 143."""
    try:
        yield
    except SIGTERMException:
        # Lightning would end with status 0, as if the run were complete
        command = Path(sys.argv[0]).name
        print_once(f"ended by SIGTERM: the last step is saved, {command} resume={run_dir} continues")
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish()


def logged_loss(run_dir: Path) -> dict[str, float]:
    """The last loss in metrics.jsonl, if there is one."""
    file = run_dir / "metrics.jsonl"
    losses = [row["train/loss"] for row in read_rows(file) if "train/loss" in row] if file.exists() else []
    return {"loss": float(losses[-1])} if losses else {}


@rank_zero_only
def print_once(text: str) -> None:
    """Prints on the first rank alone."""
    print(text, flush=True)
