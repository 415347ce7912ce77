"""contrast-pretrain: train an encoder, then say what its frozen features are worth."""

import functools
import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from contrast import entry
from contrast.build import build, plain
from contrast.callbacks.nonfinite import StopAtNonFinite
from contrast.callbacks.progress import RunProgress
from contrast.callbacks.throughput import Throughput
from contrast.callbacks.view_grid import ViewGrid
from contrast.data.images import Splits
from contrast.data.loader import Batches
from contrast.data.pretraining import PretrainData
from contrast.errors import InputError
from contrast.figures import (
    figure_names,
    frozen_figures,
    has_labels,
    raw_pixels,
    retrieval_figures,
    table,
    write_metrics,
)
from contrast.frozen import Towers, checkpoint_file
from contrast.keys import Second
from contrast.logs.checkpoint_io import AtomicCheckpointIO
from contrast.logs.checkpoints import Checkpoints
from contrast.logs.csv_log import CSVLog, read_rows
from contrast.logs.curves import save_curves
from contrast.logs.environment import write_environment
from contrast.logs.quiet import quiet
from contrast.module import Contrastive
from contrast.sweep.jobs import figure

# what a checkpoint restores, so that a resumed run cannot change it
RESTORED = ("encoder", "projector", "predictor", "key", "negatives", "head", "same_label", "optimizer")


def pretrain(cfg: DictConfig) -> float | None:
    """Train what `cfg` describes in Hydra's output folder; returns the figure `cfg.metric`, for sweeps.

    `cfg.resume` names a run folder, or a checkpoint in one, to continue.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    quiet()
    splits: Splits = instantiate(cfg.data)
    images = splits.pretrain
    throughput = Throughput()
    if cfg.evaluation.enabled and cfg.metric not in (names := figure_names(cfg.evaluation)):
        raise InputError(f"metric={cfg.metric} will not be among the figures: {', '.join(sorted(names))}")
    Batches(images, cfg.batch_size, cfg.seed)  # for its errors, before anything is written
    try:
        model = new_model(cfg, splits)
        trainer = make_trainer(cfg, splits, run_dir, throughput)
        say(f"{cfg.name}: {len(images):,} images of {splits.name}; everything lies in {run_dir}")
        data = PretrainData(images, cfg.batch_size, cfg.seed, workers=cfg.workers)
        trainer.fit(model, data, ckpt_path=resume_point(cfg.resume))
        if not trainer.is_global_zero:
            return None
        scores = evaluate(cfg, model, splits, trainer.strategy.root_device)
        figures = scores | throughput.figures() | last_loss(run_dir)
        for logger in trainer.loggers:
            logger.log_metrics({f"final/{name}": value for name, value in figures.items()}, trainer.global_step)
        write_metrics(run_dir, figures)
        save_curves(run_dir)
        if not scores:  # not asked for, or no labels
            return figures.get(cfg.metric)
        say(f"{table(scores, list(cfg.evaluation.per_class))}\n{run_dir}")
        return figure(figures, cfg.metric) if has_labels(splits) else figures.get(cfg.metric)
    except SIGTERMException:
        # Lightning would end with status 0, as if the run were complete
        say(f"told to end: the last step is saved, contrast-pretrain resume={run_dir} continues")
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        wandb.finish()


def resume_point(resume: str | None) -> str | None:
    """The checkpoint to continue from; None for a new run."""
    return None if resume is None else str(checkpoint_file(resume))


def new_model(cfg: DictConfig, splits: Splits) -> Contrastive:
    """The model before its first step, a function of the configuration and its seed alone."""
    pl.seed_everything(cfg.seed, verbose=False)
    return build(cfg, splits.pretrain, splits.tokenizer)


def make_trainer(cfg: DictConfig, splits: Splits, run_dir: Path, throughput: Throughput) -> pl.Trainer:
    callbacks: list[pl.Callback] = [
        Checkpoints(run_dir / "checkpoints", **cfg.checkpoints),
        StopAtNonFinite(run_dir),
        ViewGrid(run_dir),
        RunProgress(),
        throughput,
    ]
    for node in (cfg.callbacks or {}).values():
        callback = instantiate(node)
        if isinstance(callback, functools.partial):  # a probe: it wants labelled images
            if not (splits.train.labels >= 0).any():
                continue
            callback = callback(images=splits.train)
        callbacks.append(callback)
    write_environment(run_dir)
    return instantiate(
        cfg.trainer,
        logger=[CSVLog(run_dir), *loggers(cfg, run_dir)],
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=str(run_dir),
        log_every_n_steps=min(cfg.trainer.log_every_n_steps, len(splits.pretrain) // cfg.batch_size),
    )


def loggers(cfg: DictConfig, run_dir: Path) -> list[Any]:
    """What logs besides metrics.csv; the jobs of a sweep are one group."""
    hydra = HydraConfig.get()
    group = Path(hydra.sweep.dir).name if hydra.mode == RunMode.MULTIRUN else None
    name = f"{group}/{hydra.job.num}" if group else run_dir.name
    made = [instantiate(node, _partial_=True) for node in (cfg.logger or {}).values()]
    return [make(run_dir=run_dir, name=name, group=group, config=plain(cfg)) for make in made]


def last_loss(run_dir: Path) -> dict[str, float]:
    """The loss of the last step that was logged, if one was: a run may be shorter than the interval of its log."""
    file = run_dir / "metrics.csv"
    losses = [row["train/loss"] for row in read_rows(file)[1] if "train/loss" in row] if file.exists() else []
    return {"loss": float(losses[-1])} if losses else {}


def evaluate(cfg: DictConfig, model: Contrastive, splits: Splits, device: torch.device) -> dict[str, float]:
    """Figures of the trained encoder, of the untrained one and of raw pixels, as far as `cfg.evaluation` asks."""
    if not cfg.evaluation.enabled:
        return {}
    retrieval = {}
    if isinstance(model.key, Second) and splits.test is not None:
        towers = Towers(model.normalize, model.encoder, model.projector, model.key)
        retrieval = retrieval_figures(towers, splits.test, device)
    if not has_labels(splits):
        say(f"{splits.name} has no {'labels' if splits.test else 'test set'}: no figures of the frozen encoder")
        return retrieval
    figures = retrieval | frozen_figures(cfg.evaluation, model.to(device), splits, device)
    if cfg.evaluation.untrained:
        untrained = new_model(cfg, splits).to(device)
        figures |= frozen_figures(cfg.evaluation, untrained, splits, device, "untrained_")
    if cfg.evaluation.pixels:
        figures |= frozen_figures(cfg.evaluation, raw_pixels, splits, device, "pixels_")
    return figures


@rank_zero_only
def say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    entry.run(pretrain, "pretrain", restored=RESTORED)
