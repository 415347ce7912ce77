"""The final figures of a run: what its frozen features are worth, beside the untrained encoder's and raw pixels'."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from contrast.data.images import ImageFiles, Images, Splits
from contrast.evaluation.features import features
from contrast.evaluation.protocol import frozen_scores
from contrast.files import replacing

ROWS = {
    "knn_top1": "kNN top-1",
    "linear_top1": "linear probe top-1",
    "linear_{n}_per_class_top1": "linear probe, {n} labels a class",
}


def frozen_figures(
    cfg: DictConfig, encoder: Callable[[Tensor], Tensor], splits: Splits, device: torch.device, prefix: str = ""
) -> dict[str, float]:
    """kNN and linear figures of images -> features on the labelled training rows and the test set of `splits`."""
    assert splits.test is not None
    train, test = labelled(splits.train, cfg.max_train), labelled(splits.test, cfg.max_test)
    name = prefix.rstrip("_") or "trained"
    found = [features(encoder, images, device=device, desc=f"{name} features") for images in (train, test)]
    scores = frozen_scores(
        found[0],
        train.labels,
        found[1],
        test.labels,
        k=cfg.k,
        temperature=cfg.temperature,
        per_class=tuple(cfg.per_class),
        device=device,
    )
    return {prefix + key: value for key, value in scores.items()}


def labelled(images: Images | ImageFiles, most: int | None) -> Any:
    """The labelled images, at most `most` of them, evenly spread."""
    rows = (images.labels >= 0).nonzero().flatten()
    if most is not None and len(rows) > most:
        rows = rows[torch.linspace(0, len(rows) - 1, most).round().long()]
    return images.select(rows)


def figure_names(cfg: DictConfig) -> set[str]:
    """Names that the figures of a run may have, given its `evaluation`."""
    scores = {f"{kind}_{what}" for kind in ("knn", "linear") for what in ("top1", "top5")}
    scores |= {"linear_val_top1", "linear_learning_rate", "linear_weight_decay"}
    scores |= {f"linear_{number}_per_class_top1" for number in cfg.per_class}
    prefixes = [""] + ["untrained_"] * bool(cfg.untrained) + ["pixels_"] * bool(cfg.pixels)
    found = {prefix + name for prefix in prefixes for name in scores} if cfg.enabled else set()
    return found | {"loss", "seconds", "images_per_second"}


def has_labels(splits: Splits) -> bool:
    return splits.test is not None and bool((splits.train.labels >= 0).any())


def raw_pixels(pixels: Tensor) -> Tensor:
    """[B, C, H, W] uint8 -> [B, C H W] float in 0..1."""
    return pixels.flatten(1) / 255


def table(figures: dict[str, float], per_class: list[int]) -> str:
    """The figures as a small text table: a row a protocol, a column a kind of features."""
    columns = {"pixels_": "raw pixels", "untrained_": "untrained", "": "trained"}
    shown = {prefix: head for prefix, head in columns.items() if f"{prefix}knn_top1" in figures}
    rows = [(key, label) for key, label in ROWS.items() if "{n}" not in key]
    rows += [(key.format(n=n), label.format(n=n)) for key, label in ROWS.items() if "{n}" in key for n in per_class]
    lines = [" " * 32 + "".join(f"{head:>12}" for head in shown.values())]
    for key, label in rows:
        cells = [figures.get(prefix + key) for prefix in shown]
        lines.append(f"{label:<32}" + "".join(f"{'-' if cell is None else f'{cell:.4f}':>12}" for cell in cells))
    return "\n".join(lines)


def write_metrics(run_dir: Path, figures: dict[str, float]) -> None:
    """metrics.json, whole or not at all: its presence says that the run is complete."""
    with replacing(run_dir / "metrics.json") as file:
        file.write_text(json.dumps(figures, indent=2) + "\n")
