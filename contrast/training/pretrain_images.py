"""Pretraining on images: an encoder, and what its frozen features are worth."""

import functools
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from contrast.data.images.image_set import Splits
from contrast.data.loader import Batches, PretrainData
from contrast.errors import InputError
from contrast.evaluation.encoder import Towers
from contrast.evaluation.features import EvaluationData
from contrast.evaluation.report import (
    few_pixels,
    frozen_metrics,
    has_labels,
    metric_names,
    raw_pixels,
    table,
    write_metrics,
)
from contrast.evaluation.retrieval import retrieval as retrieval_metrics
from contrast.keys import Second
from contrast.module import Contrastive
from contrast.run.curves import save_curves
from contrast.run.jobs import metric_of
from contrast.training.build import build
from contrast.training.callbacks.nonfinite import StopAtNonFinite
from contrast.training.callbacks.online import without_singles
from contrast.training.callbacks.throughput import Throughput
from contrast.training.callbacks.view_grid import ViewGrid
from contrast.training.trainer import ending, last_loss, make_trainer, resume_point, say


def pretrain_images(cfg: DictConfig, splits: Splits, run_dir: Path) -> float | None:
    images = splits.pretrain
    throughput = Throughput("images", lambda batch: len(batch.pixels))
    if cfg.evaluation.enabled and cfg.metric not in (names := metric_names(cfg.evaluation)):
        raise InputError(f"metric={cfg.metric} will not be among the figures: {', '.join(sorted(names))}")
    Batches(images, cfg.batch_size, cfg.seed)  # for its errors, before anything is written
    with ending(run_dir):
        model = new_model(cfg, splits)
        looking = lookers(cfg, splits, run_dir, throughput)
        trainer = make_trainer(cfg, run_dir, looking, len(images) // cfg.batch_size)
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
        return metric_of(figures, cfg.metric) if has_labels(splits) else figures.get(cfg.metric)


def new_model(cfg: DictConfig, splits: Splits) -> Contrastive:
    """The model before its first step, a function of the configuration and its seed alone."""
    pl.seed_everything(cfg.seed, verbose=False)
    return build(cfg, splits.pretrain, splits.tokenizer)


def lookers(cfg: DictConfig, splits: Splits, run_dir: Path, throughput: Throughput) -> list[pl.Callback]:
    """The callbacks of a run on images."""
    found: list[pl.Callback] = [StopAtNonFinite(run_dir), ViewGrid(run_dir), throughput]
    for node in (cfg.callbacks or {}).values():
        callback = instantiate(node)
        if isinstance(callback, functools.partial):  # a probe: it wants labelled images, two of a class
            if not (without_singles(splits.train.labels) >= 0).any():
                continue
            callback = callback(images=splits.train)
        found.append(callback)
    return found


def evaluate(cfg: DictConfig, model: Contrastive, splits: Splits, device: torch.device) -> dict[str, float]:
    """Figures of the trained encoder, of the untrained one and of raw pixels, as far as `cfg.evaluation` asks."""
    if not cfg.evaluation.enabled:
        return {}
    retrieval = {}
    if isinstance(model.key, Second) and splits.test is not None:
        towers = Towers(model.normalize, model.encoder, model.projector, model.key)
        retrieval = retrieval_metrics(EvaluationData(towers, splits.train, splits.test, device, workers=cfg.workers))
    if not has_labels(splits):
        say(f"{splits.name} has no {'labels' if splits.test else 'test set'}: no figures of the frozen encoder")
        return retrieval
    figures = retrieval | frozen_metrics(cfg.evaluation, model.to(device), splits, device, workers=cfg.workers)
    if cfg.evaluation.untrained:
        untrained = new_model(cfg, splits).to(device)
        figures |= frozen_metrics(cfg.evaluation, untrained, splits, device, "untrained_", cfg.workers)
    if cfg.evaluation.pixels and not few_pixels(splits.train):
        say(f"images of {splits.train.size} x {splits.train.size} have too many raw pixels for figures of these")
    elif cfg.evaluation.pixels:
        figures |= frozen_metrics(cfg.evaluation, raw_pixels, splits, device, "pixels_", cfg.workers)
    return figures
