"""The metrics at the end of a run on images: of the trained encoder, the untrained one and raw pixels; their table."""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from contrast.atomic import replacing
from contrast.config.trust import Config
from contrast.data.images.image_set import ImageFiles, Images, Splits
from contrast.data.images.subset import stratified
from contrast.evaluation.features import EvaluationData
from contrast.evaluation.knn import knn
from contrast.evaluation.linear_probe import few_labels, linear
from contrast.evaluation.retrieval import DIRECTIONS, retrieval_names
from contrast.evaluation.unlabelled import NAMES as UNLABELLED

ROWS = {
    "knn_top1": "kNN top-1",
    "linear_top1": "linear probe top-1",
    "linear_{n}_per_class_top1": "linear probe, {n} labels a class",
    "held_out_top1": "other view nearest, top-1",
    "held_out_loss": "loss of held-out views",
    "effective_rank": "effective rank",
    "uniformity": "uniformity",
}
COLUMNS = {"pixels_": "raw pixels", "untrained_": "untrained", "": "trained"}


def frozen_data(
    cfg: Config,
    encoder: Callable[[Tensor], Tensor],
    splits: Splits,
    device: torch.device,
    workers: int = 0,
) -> EvaluationData:
    """The labelled training rows and the test set of `splits`, at most cfg.max_train and cfg.max_test of them."""
    assert splits.test is not None
    train, test = labelled(splits.train, cfg.get("max_train")), labelled(splits.test, cfg.get("max_test"))
    return EvaluationData(encoder, train, test, device, workers=workers)


def frozen_metrics(cfg: DictConfig, data: EvaluationData, prefix: str = "") -> dict[str, float]:
    """kNN and linear metrics of the features of `data`.

    knn_top1, linear_top1, linear_val_top1, linear_learning_rate, linear_weight_decay, linear_macro_f1 and
    linear_class_mean_accuracy; knn_top5 and linear_top5 with more than five classes; linear_10_per_class_top1,
    `few_labels` of 10, and so on for each number in cfg.per_class that every class has. Each name begins with `prefix`;
    shares are between 0 and 1.

    cfg  k, temperature, per_class: see conf/evaluation/default.yaml
    """
    metrics = {f"knn_{name}": value for name, value in knn(data, cfg.k, cfg.temperature).items()}
    metrics |= {f"linear_{name}": value for name, value in linear(data).items()}
    for number in cfg.per_class:
        top1 = few_labels(data, number)
        if top1 is not None:
            metrics[f"linear_{number}_per_class_top1"] = top1
    return {prefix + name: value for name, value in metrics.items()}


def metric_names(cfg: DictConfig, splits: Splits) -> set[str]:
    """Names of the metrics of a run on `splits` with this `evaluation`; recalls only if it trains on their captions."""
    names = {"loss", "seconds", "images_per_second"}
    if not cfg.enabled or splits.test is None:
        return names
    if splits.train.text is not None:
        names |= retrieval_names(captions=True)
    if not has_labels(splits):
        prefixes = ["", *["untrained_"] * cfg.untrained] if len(splits.test) > 1 else []
        return names | {prefix + name for prefix in prefixes for name in UNLABELLED}
    labels = splits.train.labels[splits.train.labels >= 0]
    if cfg.max_train is not None:
        labels = labels[stratified(labels, cfg.max_train, 0)]
    counts = labels.unique(return_counts=True)[1]
    best = ["top1", "top5"] if int(torch.cat([labels, splits.test.labels]).max()) >= 5 else ["top1"]
    frozen = {f"{kind}_{top}" for kind in ("knn", "linear") for top in best}
    frozen |= {f"linear_{name}" for name in ("learning_rate", "weight_decay", "macro_f1", "class_mean_accuracy")}
    frozen |= {f"linear_{number}_per_class_top1" for number in cfg.per_class if number <= counts.min()}
    if counts.max() > 1:  # otherwise no image can be held out
        frozen |= {"linear_val_top1"}
    prefixes = ["", *["untrained_"] * cfg.untrained, *["pixels_"] * (cfg.pixels and few_pixels(splits.train))]
    return names | {prefix + name for prefix in prefixes for name in frozen}


def labelled(images: Images | ImageFiles, most: int | None) -> Images | ImageFiles:
    """The labelled images; of more than `most` a stratified sample of so many, the same in every run."""
    labels = images.labels
    return images.select((labels >= 0).nonzero().flatten() if most is None else stratified(labels, most, 0))


def has_labels(splits: Splits) -> bool:
    """Whether accuracies can be measured: on a test set, and of two classes at least."""
    return splits.test is not None and several_classes(splits.train.labels)


def several_classes(labels: Tensor) -> bool:
    return len(labels[labels >= 0].unique()) > 1


def few_pixels(images: Images | ImageFiles) -> bool:
    """Whether raw pixels are features that a linear probe can hold: 64 x 64 in colour at most."""
    return images.channels * images.size**2 <= 3 * 64**2


def raw_pixels(pixels: Tensor) -> Tensor:
    """[B, C, H, W] uint8 -> [B, C H W] float in 0..1."""
    return pixels.flatten(1) / 255


def metric_rows(metrics: Mapping[str, float]) -> tuple[dict[str, str], dict[str, str]]:
    """Columns and rows of the table of metrics: the prefixes and the rest of the names, each with its heading."""
    matches = (re.fullmatch(r"linear_(\d+)_per_class_top1", name) for name in metrics)
    numbers = sorted({int(match[1]) for match in matches if match})
    rows = {
        key.format(n=n): label.format(n=n) for key, label in ROWS.items() for n in (numbers if "{n}" in key else [0])
    }
    heads = {prefix: head for prefix, head in COLUMNS.items() if any(prefix + key in metrics for key in rows)}
    return heads, {key: label for key, label in rows.items() if any(prefix + key in metrics for prefix in heads)}


def table(metrics: Mapping[str, float]) -> str:
    """The metrics as a small text table: a row for each protocol, a column for each kind of features."""
    heads, rows = metric_rows(metrics)
    lines = [" " * 32 + "".join(f"{head:>12}" for head in heads.values())]
    for key, label in rows.items():
        cells = [metrics.get(prefix + key) for prefix in heads]
        lines.append(f"{label:<32}" + "".join(f"{'-' if cell is None else f'{cell:.4f}':>12}" for cell in cells))
    for label, recalls in recall_rows(metrics).items():
        lines.append(f"{label:<32}" + "   ".join(f"recall@{k} {value:.4f}" for k, value in recalls.items()))
    return "\n".join(lines)


def recall_rows(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Recalls of images and captions by k, in each direction that was measured."""
    rows = {}
    for name, label in DIRECTIONS.items():
        start = f"{name}_recall"
        rows[label] = {key.removeprefix(start): value for key, value in metrics.items() if key.startswith(start)}
    return {label: recalls for label, recalls in rows.items() if recalls}


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % confidence interval of a share of `count` (Wilson 1927)."""
    centre, scale = share + z * z / (2 * count), 1 + z * z / count
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (centre - half) / scale, (centre + half) / scale


def write_metrics(run_dir: Path, metrics: Mapping[str, object]) -> None:
    """metrics.json, whole or not at all: its presence says that the run is complete."""
    with replacing(run_dir / "metrics.json") as file:
        file.write_text(json.dumps(metrics, indent=2) + "\n")
