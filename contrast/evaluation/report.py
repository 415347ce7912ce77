"""The metrics at the end of a run on images: of the trained encoder, the untrained one and raw pixels; their table."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from contrast.atomic import replacing
from contrast.data.images.image_set import ImageFiles, Images, Splits
from contrast.data.images.subset import stratified
from contrast.evaluation.features import EvaluationData
from contrast.evaluation.knn import knn
from contrast.evaluation.linear_probe import few_labels, linear

RETRIEVAL = {"image_to_text": "captions for images", "text_to_image": "images for captions"}
ROWS = {
    "knn_top1": "kNN top-1",
    "linear_top1": "linear probe top-1",
    "linear_{n}_per_class_top1": "linear probe, {n} labels a class",
}
COLUMNS = {"pixels_": "raw pixels", "untrained_": "untrained", "": "trained"}


def frozen_metrics(
    cfg: DictConfig,
    encoder: Callable[[Tensor], Tensor],
    splits: Splits,
    device: torch.device,
    prefix: str = "",
    workers: int = 0,
) -> dict[str, float]:
    """kNN and linear metrics of images -> features on the labelled training rows and the test set of `splits`.

    knn_top1, linear_top1, linear_val_top1, linear_learning_rate, linear_weight_decay; knn_top5 and linear_top5 with
    more than five classes; linear_10_per_class_top1, `few_labels` of 10, and so on for each number in cfg.per_class
    that every class has. Each name begins with `prefix`; shares are between 0 and 1.

    cfg      k, temperature, per_class, max_train, max_test: see conf/evaluation/default.yaml
    workers  processes that decode images which are not in memory
    """
    assert splits.test is not None
    train, test = labelled(splits.train, cfg.max_train), labelled(splits.test, cfg.max_test)
    data = EvaluationData(encoder, train, test, device, workers=workers)
    metrics = {f"knn_{name}": value for name, value in knn(data, cfg.k, cfg.temperature).items()}
    metrics |= {f"linear_{name}": value for name, value in linear(data).items()}
    for number in cfg.per_class:
        top1 = few_labels(data, number)
        if top1 is not None:
            metrics[f"linear_{number}_per_class_top1"] = top1
    return {prefix + name: value for name, value in metrics.items()}


def metric_names(cfg: DictConfig) -> set[str]:
    """Names that the metrics of a run may have, given its `evaluation`."""
    always = {"loss", "seconds", "images_per_second"}
    if not cfg.enabled:
        return always
    names = {f"{kind}_{what}" for kind in ("knn", "linear") for what in ("top1", "top5")}
    names |= {"linear_val_top1", "linear_learning_rate", "linear_weight_decay"}
    names |= {f"linear_{number}_per_class_top1" for number in cfg.per_class}
    prefixes = [""] + ["untrained_"] * bool(cfg.untrained) + ["pixels_"] * bool(cfg.pixels)
    recalls = {f"{name}_recall{k}" for name in RETRIEVAL for k in (1, 5, 10)}
    return always | recalls | {prefix + name for prefix in prefixes for name in names}


def labelled(images: Images | ImageFiles, most: int | None, seed: int = 0) -> Images | ImageFiles:
    """The labelled images; of more than `most` a stratified sample of so many, drawn from seed."""
    labels = images.labels
    return images.select((labels >= 0).nonzero().flatten() if most is None else stratified(labels, most, seed))


def has_labels(splits: Splits) -> bool:
    return splits.test is not None and bool((splits.train.labels >= 0).any())


def few_pixels(images: Images | ImageFiles) -> bool:
    """Whether raw pixels are features that a linear probe can hold: 64 x 64 in colour at most."""
    return images.channels * images.size**2 <= 3 * 64**2


def raw_pixels(pixels: Tensor) -> Tensor:
    """[B, C, H, W] uint8 -> [B, C H W] float in 0..1."""
    return pixels.flatten(1) / 255


def table(metrics: dict[str, float], per_class: list[int]) -> str:
    """The metrics as a small text table: a row a protocol, a column a kind of features."""
    shown = {prefix: head for prefix, head in COLUMNS.items() if f"{prefix}knn_top1" in metrics}
    rows = {
        key.format(n=n): label.format(n=n) for key, label in ROWS.items() for n in (per_class if "{n}" in key else [0])
    }
    lines = [" " * 32 + "".join(f"{head:>12}" for head in shown.values())]
    for key, label in rows.items():
        cells = [metrics.get(prefix + key) for prefix in shown]
        lines.append(f"{label:<32}" + "".join(f"{'-' if cell is None else f'{cell:.4f}':>12}" for cell in cells))
    for name, label in RETRIEVAL.items():
        start = f"{name}_recall"
        recalls = {key.removeprefix(start): value for key, value in metrics.items() if key.startswith(start)}
        if recalls:
            lines.append(f"{label:<32}" + "   ".join(f"recall@{k} {value:.4f}" for k, value in recalls.items()))
    return "\n".join(lines)


def write_metrics(run_dir: Path, metrics: dict[str, float]) -> None:
    """metrics.json, whole or not at all: its presence says that the run is complete."""
    with replacing(run_dir / "metrics.json") as file:
        file.write_text(json.dumps(metrics, indent=2) + "\n")
