"""What pretraining on images and on text share: the trainer, its loggers, and how a run ends."""

import inspect
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from contrast.config.facts import complete
from contrast.encoders.pretrained import checkpoint_file
from contrast.errors import InputError, making, one_line
from contrast.evaluation.report import write_metrics
from contrast.run.checkpoints import AtomicCheckpointIO, Checkpoints
from contrast.run.compose import begin
from contrast.run.curves import CurvesLog, save_curves
from contrast.run.environment import write_environment
from contrast.run.folder import is_first_rank
from contrast.run.metrics import MetricsLog, read_rows
from contrast.run.quiet import quiet
from contrast.run.ranks import Ranks
from contrast.run.signals import Signals, saved
from contrast.training.build import plain
from contrast.training.callbacks.measured import Prune
from contrast.training.callbacks.progress import throughput_of
from contrast.words.base import TextModel

log = logging.getLogger(__name__)

SHARDED = "fsdp2"  # trainer.strategy: the weights are sharded over the devices

RESUMED_WITH = ("state_dict", "global_step", "pytorch-lightning_version")  # entries that Lightning reads to resume

# trainer settings that the run itself sets, and what to use instead or why
OWN = {
    "logger": "logger=none, for example",
    "callbacks": "+callbacks.NAME._target_=...",
    "plugins": "it writes checkpoints that are whole or absent",
    "default_root_dir": "hydra.run.dir=...",
}


def check_settings(cfg: DictConfig) -> pl.Trainer:
    """A trainer of these settings. Raises InputError for what cannot work, before anything is read or written."""
    quiet()
    if cfg.trainer.get("fast_dev_run"):
        raise InputError("trainer.fast_dev_run leaves no metrics and no checkpoints: debug=quick takes 2 steps instead")
    if str(cfg.trainer.precision) in ("bf16-true", "16-true"):
        half = str(cfg.trainer.precision).removesuffix("-true")
        raise InputError(
            f"trainer.precision={half}-true would hold weights and running averages in 16 bits, which small updates do "
            f"not change: trainer.precision={half}-mixed"
        )
    for name in OWN.keys() & cfg.trainer:
        raise InputError(f"trainer.{name} is set by the run: {OWN[name]}")
    return bare_trainer(cfg.trainer)


def check_unsharded(cfg: DictConfig) -> None:
    """As `check_settings`, for commands that pretrain nothing: there are no weights to shard."""
    if cfg.trainer.strategy == SHARDED:
        raise InputError(f"trainer.strategy={SHARDED} shards what contrast-pretrain trains: here it is auto or ddp")
    check_settings(cfg)


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
    title      text of the first line that is printed
    evaluate   called with the device of the trained model, returns its metrics and a report, which is printed

    Returns all metrics, after they are logged and written to metrics.json; None on other ranks. `loss` is that of the
    last step that was logged, or of the last batch if none was, unless `evaluate` returns one.
    """
    signals, ranks = Signals(run_dir), Ranks(run_dir)
    with closing(run_dir, signals):
        begun = LambdaCallback(on_train_start=lambda *_: record(cfg, run_dir))
        others = [*callbacks, signals, ranks, begun]
        trainer = make_trainer(cfg, run_dir, others, strategy(cfg.trainer, not isinstance(model, TextModel)))
        print_once(f"{cfg.name}: {title}; the run folder is {run_dir}")
        file = None if cfg.resume is None else str(checkpoint_file(cfg.resume))
        with ranks.together(trainer):
            trainer.fit(model, data, ckpt_path=file, weights_only=True)  # whatever the environment says
        if not trainer.is_global_zero:
            return None
        metrics, report = evaluate(trainer.strategy.root_device)
        metrics = throughput_of(trainer).metrics() | logged_loss(run_dir) | metrics
        for callback in callbacks:
            if isinstance(callback, Prune):
                metrics |= callback.metrics
        for logger in trainer.loggers:
            logger.log_metrics({f"final/{name}": value for name, value in metrics.items()}, trainer.global_step)
        record(cfg, run_dir)  # also of a run that has no step left
        write_metrics(run_dir, metrics)
        save_curves(run_dir)
        if report:
            print_once(f"{report}\n{run_dir}")
        return metrics


@rank_zero_only
def record(cfg: DictConfig, run_dir: Path) -> None:
    """The configuration of a resumed run; that of a new one is in its folder already."""
    if cfg.resume is not None and HydraConfig.get().mode != RunMode.MULTIRUN:
        begin(cfg, run_dir)


def make_trainer(cfg: DictConfig, run_dir: Path, callbacks: Sequence[pl.Callback], ranks: str | Strategy) -> pl.Trainer:
    """A trainer with these callbacks that writes checkpoints and metrics to `run_dir`."""
    write_environment(run_dir)
    return instantiate(
        cfg.trainer,
        strategy=ranks,
        logger=[MetricsLog(run_dir), CurvesLog(run_dir), *loggers(cfg, run_dir)],
        callbacks=[Checkpoints(run_dir / "checkpoints", **cfg.checkpoints), *callbacks],
        plugins=[AtomicCheckpointIO(needed=RESUMED_WITH)],
        default_root_dir=str(run_dir),
    )


def callbacks_of(cfg: DictConfig, facts: Mapping[str, object]) -> list[pl.Callback]:
    """The callbacks that `cfg` names. One that is null or needs a fact which is None is left out."""
    absent = {name for name, fact in facts.items() if fact is None}
    made = []
    for name, node in (cfg.get("callbacks") or {}).items():
        if node is None:
            continue
        make = instantiate(node, _partial_=True)
        if not absent & set(inspect.signature(make.func).parameters):
            with making(f"callbacks.{name}"):
                made.append(complete(make, facts))
    return made


def bare_trainer(trainer: DictConfig, **given: object) -> pl.Trainer:
    """The trainer of the configuration without loggers, to read its devices and the length of training.

    given  settings in place of those of the configuration

    Raises InputError for settings that Lightning refuses; it names those that Lightning's message mentions. And for
    another number of processes than torchrun has started, each of which would otherwise train alone.
    """
    processes = int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else None
    devices, nodes = trainer.get("devices"), trainer.get("num_nodes", 1)
    if processes is not None and isinstance(devices, int) and devices > 0 and devices * nodes != processes:
        of_each, rest = divmod(processes, nodes)
        right = f"trainer.num_nodes=1 trainer.devices={processes}" if rest else f"trainer.devices={of_each}"
        raise InputError(
            f"trainer.devices={devices} on trainer.num_nodes={nodes} are {devices * nodes} processes, and torchrun has "
            f"started {processes}: {right} trainer.strategy=ddp"
        )
    try:
        named = "ddp" if trainer.strategy == SHARDED else trainer.strategy  # of the same devices
        bare = {"strategy": named, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        return instantiate(trainer, **bare | given)
    except InstantiationException as error:
        reason = one_line(error.__cause__ or error)
        words = set(re.findall(r"[\w-]+", reason))
        settings = {str(name): str(value) for name, value in trainer.items()}
        named = [f"trainer.{name}={value}" for name, value in settings.items() if words & {name, value}]
        raise InputError(f"{' '.join(named) or 'trainer'}: {reason}") from error


class Unwrapped(DDPStrategy):
    """DDP of a model that averages its gradients itself (`average_gradients`): without torch's wrapper of the model."""

    def configure_ddp(self) -> None:
        """Leaves the model as it is."""


def strategy(trainer: DictConfig, wrapped: bool = True) -> str | Strategy:
    """The strategy that the configuration names; fsdp2 is this library's name, and DDP does not broadcast buffers.

    Every rank writes the same values into the buffers of queues, banks and key encoders, and the running statistics of
    batch norm that are saved are those of the first rank, so buffers need not be broadcast in every step.

    wrapped  False: `Unwrapped`
    """
    ranks = bare_trainer(trainer).world_size
    if trainer.strategy == SHARDED and ranks == 1:
        return "auto"
    if trainer.strategy == SHARDED:
        return ModelParallelStrategy(ranks, tensor_parallel_size=1, save_distributed_checkpoint=False)
    if trainer.strategy not in ("auto", "ddp") or ranks == 1:
        return trainer.strategy
    return DDPStrategy(broadcast_buffers=False) if wrapped else Unwrapped()


def loggers(cfg: DictConfig, run_dir: Path) -> list[Logger]:
    """The loggers in addition to metrics.jsonl, called with the facts that they need; a sweep's jobs are one group."""
    hydra = HydraConfig.get()
    group = Path(hydra.sweep.dir).name if hydra.mode == RunMode.MULTIRUN else None
    name = f"{cfg.name} {f'{group}/{hydra.job.num}' if group else run_dir.name}"
    facts = {"run_dir": run_dir, "name": name, "group": group, "config": plain(cfg)}
    made = list[Logger]()
    for key, node in (cfg.logger or {}).items():
        with making(f"logger.{key}"):
            logger = complete(instantiate(node, _partial_=True), facts)
        if isinstance(logger, Logger):
            made.append(logger)
        elif logger is not None:
            raise InputError(f"logger.{key} needs a _target_ that makes a logger of Lightning, not {logger}")
    return made


@contextmanager
def closing(run_dir: Path, signals: Signals) -> Iterator[None]:
    """Closes W&B's run whatever happens, and gives a signal its exit status: 143 for SIGTERM, 130 for Ctrl-C.

    A run that ends early has its curves drawn as far as they go. One that a signal ended first says how to resume it.
    """
    try:
        yield
    except BaseException as error:
        is_signal = isinstance(error, SIGTERMException)
        number = signals.received or signal.SIGTERM
        if isinstance(error, KeyboardInterrupt | SystemExit):
            signals.ignore()
            print_once(f"{f'ended by {number.name}' if is_signal else 'interrupted'}: {saved(run_dir)}")
        if is_first_rank():
            with suppress(OSError, InputError):
                save_curves(run_dir)
        if is_signal:  # Lightning would end with status 0, as if the run were complete
            raise SystemExit(128 + number) from None
        raise
    finally:
        signals.restore()
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish()


def logged_loss(run_dir: Path) -> dict[str, float]:
    """The last loss in metrics.jsonl, if there is one."""
    file = run_dir / "metrics.jsonl"
    losses = [row["train/loss"] for row in read_rows(file) if "train/loss" in row] if file.exists() else []
    return {"loss": float(losses[-1])} if losses else {}


@rank_zero_only
def print_once(text: str) -> None:
    """Prints on the first rank alone; in a run also to the log file in its folder, where Hydra has set that up."""
    log.info(text) if log.isEnabledFor(logging.INFO) else print(text, flush=True)
