"""Pretraining on images: train an encoder, then evaluate its frozen features."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from contrast.data.images.image_set import Splits
from contrast.data.loader import Batches, PretrainData
from contrast.errors import InputError
from contrast.evaluation.encoder import Towers
from contrast.evaluation.features import EvaluationData
from contrast.evaluation.report import few_pixels, frozen_metrics, has_labels, metric_names, raw_pixels, table
from contrast.evaluation.retrieval import retrieval
from contrast.keys import Second
from contrast.module import Contrastive
from contrast.run.folder import metric_of
from contrast.training.build import build
from contrast.training.callbacks.nonfinite import StopAtNonFinite
from contrast.training.callbacks.online import without_singles
from contrast.training.callbacks.progress import Throughput
from contrast.training.callbacks.view_grid import ViewGrid
from contrast.training.trainer import callbacks_of, check_settings, print_once, train


def pretrain_images(cfg: DictConfig, splits: Splits, run_dir: Path) -> float | None:
    """Trains the model that `cfg` describes on `splits`; returns the metric `cfg.metric`, for sweeps."""
    images = splits.pretrain
    check_settings(cfg)
    if cfg.evaluation.enabled and cfg.metric not in (names := metric_names(cfg.evaluation)):
        raise InputError(f"metric={cfg.metric} will not be among the metrics: {', '.join(sorted(names))}")
    made = callbacks(cfg, splits, run_dir)
    model = new_model(cfg, splits)
    data = PretrainData(images, cfg.batch_size, cfg.seed, workers=cfg.workers)

    def evaluated(device: torch.device) -> tuple[dict[str, float], str]:
        scores = evaluate(cfg, model, splits, device)
        return scores, table(scores, list(cfg.evaluation.per_class)) if scores else ""

    metrics = train(cfg, run_dir, model, data, made, f"{len(images):,} images of {splits.name}", evaluated)
    if metrics is None or not (cfg.evaluation.enabled and has_labels(splits)):
        return (metrics or {}).get(cfg.metric)
    return metric_of(metrics, cfg.metric)


def new_model(cfg: DictConfig, splits: Splits) -> Contrastive:
    """The model before its first step, a function of the configuration and its seed alone."""
    pl.seed_everything(cfg.seed, verbose=False)
    return build(cfg, splits.pretrain, splits.tokenizer)


def callbacks(cfg: DictConfig, splits: Splits, run_dir: Path) -> list[pl.Callback]:
    """The callbacks of a run on images; probes are left out where no class has two labelled images."""
    batches = Batches(splits.pretrain, cfg.batch_size, cfg.seed)
    probed = splits.train if (without_singles(splits.train.labels) >= 0).any() else None
    throughput = Throughput("images", lambda batch: len(batch.pixels))
    return [StopAtNonFinite(run_dir), ViewGrid(run_dir, batches), throughput, *callbacks_of(cfg, {"images": probed})]


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
