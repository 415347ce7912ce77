"""The final figures of a run: what its frozen features are worth, beside the untrained encoder's and raw pixels'."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from contrast.atomic import replacing
from contrast.data.images.image_set import ImageFiles, Images, Splits
from contrast.evaluation.encoder import Towers
from contrast.evaluation.features import evaluating, features
from contrast.evaluation.protocol import frozen_scores
from contrast.evaluation.retrieval import distinct, image_ids, recall, text_ids

RETRIEVAL = {"image_to_text": "captions for images", "text_to_image": "images for captions"}
ROWS = {
    "knn_top1": "kNN top-1",
    "linear_top1": "linear probe top-1",
    "linear_{n}_per_class_top1": "linear probe, {n} labels a class",
}


def frozen_figures(
    cfg: DictConfig,
    encoder: Callable[[Tensor], Tensor],
    splits: Splits,
    device: torch.device,
    prefix: str = "",
    workers: int = 0,
) -> dict[str, float]:
    """kNN and linear figures of images -> features on the labelled training rows and the test set of `splits`.

    workers  processes that decode images which are not in memory
    """
    assert splits.test is not None
    train, test = labelled(splits.train, cfg.max_train), labelled(splits.test, cfg.max_test)
    name = prefix.rstrip("_") or "trained"
    found = [
        features(encoder, images, device=device, desc=f"{name} features", workers=workers) for images in (train, test)
    ]
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


def retrieval_figures(
    towers: Towers,
    images: Images | ImageFiles,
    device: torch.device,
    ks: Sequence[int] = (1, 5, 10),
    workers: int = 0,
) -> dict[str, float]:
    """Recall at k of captions for images, and of images for captions; every image and every caption stands once.

    What a row of the data set joins belongs together: an image is answered by any of its captions, a caption by any of
    its images.
    """
    assert images.text is not None
    which, what = image_ids(images), text_ids(images.text)  # [N], [N]
    pictures, words = distinct(which), distinct(what)
    together = joined(which, what)  # [N]
    towers = towers.to(device)
    with evaluating(towers):
        vectors = features(towers.image, images.select(pictures), device=device, desc="images", workers=workers)
        captions = encode_text(towers, images.text[words], device)
    picture_ids, word_ids = together[pictures], together[words]
    there = recall(vectors, captions, picture_ids, word_ids, ks)
    back = recall(captions, vectors, word_ids, picture_ids, ks)
    found = {f"image_to_text_recall{k}": value for k, value in there.items()}
    return found | {f"text_to_image_recall{k}": value for k, value in back.items()}


def joined(one: Tensor, other: Tensor) -> Tensor:
    """A number [N] for the rows that are joined by an equal id in `one` or in `other`, [N] each."""
    rows = len(one)
    other = other + int(one.max()) + 1
    nodes = int(other.max()) + 1
    edges = coo_array((np.ones(rows), (one.numpy(), other.numpy())), shape=(nodes, nodes))
    return torch.from_numpy(connected_components(edges, directed=False)[1].astype(np.int64))[one]


@torch.inference_mode()
def encode_text(towers: Towers, text: Tensor, device: torch.device, batch_size: int = 512) -> Tensor:
    """Captions [N, L] in the common space, [N, D] float32 on the CPU."""
    return torch.cat([towers.text(part.to(device)).float().cpu() for part in text.split(batch_size)])


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
    if cfg.enabled:
        found |= {f"{name}_recall{k}" for name in RETRIEVAL for k in (1, 5, 10)}
    return found | {"loss", "seconds", "images_per_second"}


def has_labels(splits: Splits) -> bool:
    return splits.test is not None and bool((splits.train.labels >= 0).any())


def few_pixels(images: Images | ImageFiles) -> bool:
    """Whether raw pixels are features that a linear probe can hold: 64 x 64 in colour at most."""
    return images.channels * images.size**2 <= 3 * 64**2


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
    for name, label in RETRIEVAL.items():
        start = f"{name}_recall"
        recalls = {key.removeprefix(start): value for key, value in figures.items() if key.startswith(start)}
        if recalls:
            lines.append(f"{label:<32}" + "   ".join(f"recall@{k} {value:.4f}" for k, value in recalls.items()))
    return "\n".join(lines)


def write_metrics(run_dir: Path, figures: dict[str, float]) -> None:
    """metrics.json, whole or not at all: its presence says that the run is complete."""
    with replacing(run_dir / "metrics.json") as file:
        file.write_text(json.dumps(figures, indent=2) + "\n")
