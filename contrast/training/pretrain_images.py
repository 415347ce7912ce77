"""Pretraining on images: train an encoder, then evaluate its frozen features."""

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
)
from contrast.evaluation.retrieval import retrieval
from contrast.keys import Second
from contrast.module import Contrastive
from contrast.run.jobs import metric_of
from contrast.training.build import build
from contrast.training.callbacks.nonfinite import StopAtNonFinite
from contrast.training.callbacks.online import without_singles
from contrast.training.callbacks.throughput import Throughput
from contrast.training.callbacks.view_grid import ViewGrid
from contrast.training.trainer import check_settings, closing, fit, make_trainer, print_once, save_results


def pretrain_images(cfg: DictConfig, splits: Splits, run_dir: Path) -> float | None:
    """Trains the model that `cfg` describes on `splits`; returns the metric `cfg.metric`, for sweeps."""
    images = splits.pretrain
    throughput = Throughput("images", lambda batch: len(batch.pixels))
    check_settings(cfg)
    if cfg.evaluation.enabled and cfg.metric not in (names := metric_names(cfg.evaluation)):
        raise InputError(f"metric={cfg.metric} will not be among the metrics: {', '.join(sorted(names))}")
    Batches(images, cfg.batch_size, cfg.seed)  # for its errors, before anything is written
    with closing(run_dir):
        model = new_model(cfg, splits)
        trainer = make_trainer(cfg, run_dir, callbacks(cfg, splits, run_dir, throughput))
        print_once(f"{cfg.name}: {len(images):,} images of {splits.name}; the run folder is {run_dir}")
        fit(trainer, model, PretrainData(images, cfg.batch_size, cfg.seed, workers=cfg.workers), cfg.resume)
        if not trainer.is_global_zero:
            return None
        scores = evaluate(cfg, model, splits, trainer.strategy.root_device)
        metrics = save_results(trainer, run_dir, throughput, scores)
        if scores:
            print_once(f"{table(scores, list(cfg.evaluation.per_class))}\n{run_dir}")
        evaluated = bool(scores) and has_labels(splits)
        return metric_of(metrics, cfg.metric) if evaluated else metrics.get(cfg.metric)


def new_model(cfg: DictConfig, splits: Splits) -> Contrastive:
    """The model before its first step, a function of the configuration and its seed alone."""
    pl.seed_everything(cfg.seed, verbose=False)
    return build(cfg, splits.pretrain, splits.tokenizer)


def callbacks(cfg: DictConfig, splits: Splits, run_dir: Path, throughput: Throughput) -> list[pl.Callback]:
    """The callbacks of a run on images; probes are left out where no class has two labelled images."""
    made: list[pl.Callback] = [StopAtNonFinite(run_dir), ViewGrid(run_dir), throughput]
    for node in (cfg.callbacks or {}).values():
        callback = instantiate(node)
        if not isinstance(callback, functools.partial):
            made.append(callback)
        elif (without_singles(splits.train.labels) >= 0).any():
            made.append(callback(images=splits.train))
    return made


def evaluate(cfg: DictConfig, model: Contrastive, splits: Splits, device: torch.device) -> dict[str, float]:
    """Metrics of the trained encoder, of the untrained one and of raw pixels, as `cfg.evaluation` requests them."""
    if not cfg.evaluation.enabled:
        return {}
    metrics = {}
    if isinstance(model.key, Second) and splits.test is not None:
        towers = Towers(model.normalize, model.encoder, model.projector, model.key)
        metrics = retrieval(EvaluationData(towers, splits.train, splits.test, device, workers=cfg.workers))
    if not has_labels(splits):
        lacks = "labels" if splits.test else "test set"
        print_once(f"{splits.name} has no {lacks}: the frozen encoder is not evaluated")
        return metrics
    metrics |= frozen_metrics(cfg.evaluation, model.to(device), splits, device, workers=cfg.workers)
    if cfg.evaluation.untrained:
        untrained = new_model(cfg, splits).to(device)
        metrics |= frozen_metrics(cfg.evaluation, untrained, splits, device, "untrained_", cfg.workers)
    if cfg.evaluation.pixels and few_pixels(splits.train):
        metrics |= frozen_metrics(cfg.evaluation, raw_pixels, splits, device, "pixels_", cfg.workers)
    elif cfg.evaluation.pixels:
        size = splits.train.size
        print_once(f"images of {size} x {size} have too many raw pixels for a linear probe: these are not evaluated")
    return metrics
