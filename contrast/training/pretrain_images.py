"""Pretraining on images: train an encoder, then evaluate its frozen features."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from contrast.data.images.image_set import Splits
from contrast.data.images.subset import without_singles
from contrast.data.loader import Batches
from contrast.encoders.pretrained import checkpoint_file
from contrast.encoders.weights import read
from contrast.errors import InputError, one_line
from contrast.evaluation.encoder import Frozen, Towers
from contrast.evaluation.features import EvaluationData
from contrast.evaluation.report import (
    few_pixels,
    frozen_data,
    frozen_metrics,
    has_labels,
    metric_names,
    raw_pixels,
    several_classes,
    table,
)
from contrast.evaluation.retrieval import retrieval
from contrast.evaluation.unlabelled import MOST, unlabelled
from contrast.keys import Second
from contrast.module import Contrastive
from contrast.report.run_page import RunReport
from contrast.report.sweep_page import REPORT
from contrast.run.errors import causes
from contrast.run.folder import INSTEAD, value_of
from contrast.training.build import build, check_batch_norm
from contrast.training.callbacks.ema import EncoderEMA
from contrast.training.callbacks.nonfinite import SaveNonFinite
from contrast.training.callbacks.progress import Throughput
from contrast.training.callbacks.view_grid import ViewGrid
from contrast.training.data import PretrainData
from contrast.training.trainer import SHARDED, bare_trainer, callbacks_of, print_once, train

METRIC = "linear_val_top1"  # the default; it is no error if the data or the evaluation of a run do not give it


def pretrain_images(cfg: DictConfig, splits: Splits, run_dir: Path) -> float | None:
    """Trains the model that `cfg` describes on `splits`; returns the metric `cfg.metric`, for sweeps."""
    images = splits.pretrain
    names = metric_names(cfg.evaluation, splits)
    sweeper = HydraConfig.get().runtime.choices.get("hydra/sweeper")
    optimises = HydraConfig.get().mode == RunMode.MULTIRUN and sweeper != "basic"
    if not {cfg.metric, INSTEAD.get(cfg.metric)} & names and (cfg.metric != METRIC or optimises):
        raise InputError(f"metric={cfg.metric} will not be among the metrics: {', '.join(sorted(names))}")
    if "linear_top1" in names and METRIC not in names:
        print_once(f"no class of {splits.name} has two images, so that none are held out: there is no {METRIC}")
    made = callbacks(cfg, splits, run_dir)
    model = new_model(cfg, splits)
    if not cfg.trainer.sync_batchnorm:
        check_batch_norm(model, cfg.batch_size // bare_trainer(cfg.trainer).world_size)
    if cfg.trainer.strategy == SHARDED:
        model.shardable()
        if any(isinstance(each, EncoderEMA) and each.decay is not None for each in made):
            raise InputError("callbacks.ema averages whole weights, which trainer.strategy=fsdp2 leaves on no rank")
    data = PretrainData(images, cfg.batch_size, cfg.seed, workers=cfg.workers)

    def trained() -> Contrastive:
        return whole_model(cfg, splits, run_dir) if cfg.trainer.strategy == SHARDED else model

    of_trained: EvaluationData | None = None

    def evaluated(device: torch.device) -> tuple[dict[str, float], str]:
        nonlocal of_trained
        whole = trained().to(device)
        if cfg.evaluation.enabled and has_labels(splits):
            of_trained = frozen_data(cfg.evaluation, whole, splits, device, cfg.workers)
        scores = evaluate(cfg, whole, splits, device, of_trained)
        return scores, table(scores) if scores else ""

    metrics = train(cfg, run_dir, model, data, made, f"{len(images):,} images of {splits.name}", evaluated)
    if metrics is not None and cfg.get("report"):
        save_report(cfg, trained(), splits, metrics, run_dir, of_trained)
    return None if metrics is None else value_of(metrics, cfg.metric)


def save_report(
    cfg: DictConfig,
    model: Contrastive,
    splits: Splits,
    metrics: dict[str, float],
    run_dir: Path,
    data: EvaluationData | None,
) -> None:
    """Writes report.html into the run's folder. The run is complete already, so that an error here does not fail it.

    data  what the trained encoder was evaluated on, with its features
    """
    assert model.config is not None
    try:
        towers = frozen(model)
        device = next(towers.parameters()).device
        page = RunReport(towers, splits, model.config, metrics, run_dir, device, workers=cfg.workers, evaluated=data)
        page.write(run_dir / REPORT)
        print_once(f"{run_dir / REPORT}")
    except Exception as error:
        print_once(f"{REPORT} is not written: {one_line(error)}; contrast-report checkpoint={run_dir} tries again")


def frozen(model: Contrastive) -> Frozen:
    """The trained encoder, with that of captions if there is one."""
    if isinstance(model.key, Second):
        return Towers(model.normalize, model.encoder, model.projector, model.key)
    return Frozen(model.normalize, model.encoder)


def new_model(cfg: DictConfig, splits: Splits) -> Contrastive:
    """The model before its first step, a function of the configuration and its seed alone."""
    pl.seed_everything(cfg.seed, verbose=False)
    model = build(cfg, splits.pretrain, splits.tokenizer)
    assert model.config is not None
    test = 0 if splits.test is None else int((splits.test.labels >= 0).sum())
    model.config["images"] |= {"train": len(splits.pretrain), "test": min(test, cfg.evaluation.max_test or test)}
    return model


def whole_model(cfg: DictConfig, splits: Splits, run_dir: Path) -> Contrastive:
    """The trained model from its checkpoint, where each rank has a part of the weights alone."""
    model = new_model(cfg, splits)
    model.load_state_dict(read(checkpoint_file(run_dir))["state_dict"])
    return model


def first_model(cfg: DictConfig, splits: Splits) -> Contrastive | None:
    """The model before the first step of a run, also of a resumed one; None if its first weights are not available."""
    try:
        return new_model(cast(DictConfig, OmegaConf.merge(cfg, {"resume": None})), splits)
    except (InputError, InstantiationException) as error:
        reason = next((cause for cause in causes(error) if isinstance(cause, InputError)), None)
        if reason is None:
            raise
        print_once(f"the model before the first step is not evaluated: {reason}")
        return None


def callbacks(cfg: DictConfig, splits: Splits, run_dir: Path) -> list[pl.Callback]:
    """The callbacks of a run on images; probes are left out where no class has two labelled images."""
    batches = Batches(splits.pretrain, cfg.batch_size, cfg.seed)
    probed = splits.train if several_classes(without_singles(splits.train.labels)) else None
    throughput = Throughput("images", lambda _: cfg.batch_size)
    return [SaveNonFinite(run_dir), ViewGrid(run_dir, batches), throughput, *callbacks_of(cfg, {"images": probed})]


def evaluate(
    cfg: DictConfig, model: Contrastive, splits: Splits, device: torch.device, data: EvaluationData | None
) -> dict[str, float]:
    """Metrics of the trained encoder, of the untrained one and of raw pixels, as `cfg.evaluation` requests them.

    data  `frozen_data` of the model; None without labels
    """
    if not cfg.evaluation.enabled:
        return {}
    metrics = {}
    if isinstance(model.key, Second) and splits.test is not None:
        metrics = retrieval(EvaluationData(frozen(model), splits.train, splits.test, device, workers=cfg.workers))
    if data is None:
        tested = 0 if splits.test is None else min(len(splits.test), MOST)
        lacks = "test set" if splits.test is None else "two classes" if splits.train.classes else "labels"
        instead = f"measured on views of {tested:,} held-out images" if tested > 1 else "not evaluated"
        print_once(f"{splits.name} has no {lacks}: the frozen encoder is {instead}")
        if tested < 2:
            return metrics
        metrics |= unlabelled_metrics(model, splits, device, workers=cfg.workers)
    else:
        metrics |= frozen_metrics(cfg.evaluation, data)
    if cfg.evaluation.untrained and (untrained := first_model(cfg, splits)) is not None:
        untrained.to(device)
        if data is None:
            metrics |= unlabelled_metrics(untrained, splits, device, "untrained_", cfg.workers)
        else:
            metrics |= frozen_metrics(cfg.evaluation, replace(data, encoder=untrained), "untrained_")
    if data is None:
        return metrics
    if cfg.evaluation.pixels and few_pixels(splits.train):
        metrics |= frozen_metrics(cfg.evaluation, replace(data, encoder=raw_pixels), "pixels_")
    elif cfg.evaluation.pixels:
        size = splits.train.size
        print_once(f"images of {size} x {size} have too many raw pixels for a linear probe: these are not evaluated")
    return metrics


def unlabelled_metrics(
    model: Contrastive, splits: Splits, device: torch.device, prefix: str = "", workers: int = 0
) -> dict[str, float]:
    """As `frozen_metrics`, where no image has a label: of views of the test images."""
    assert splits.test is not None

    def view(pixels: Tensor, random: torch.Generator) -> Tensor:
        return model.views(pixels, model.views.draw(len(pixels), random).to(device))[0]

    scores = unlabelled(model, model.projector, view, splits.test, device, model.seed, workers)
    return {prefix + name: value for name, value in scores.items()}
