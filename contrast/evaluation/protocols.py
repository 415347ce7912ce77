"""What an encoder is worth on a labelled data set, and word vectors on human judgements. Each returns its figures.

N training images, M test images; V words, D dimensions.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from contrast.data.images.image_set import ImageFiles, Images
from contrast.errors import InputError
from contrast.evaluation.encoder import Frozen, Towers
from contrast.evaluation.features import cached_features, digest, features
from contrast.evaluation.knn import knn_score
from contrast.evaluation.probe import LEARNING_RATES, WEIGHT_DECAYS, linear_probe
from contrast.evaluation.report import retrieval_figures
from contrast.evaluation.words import neighbours as nearest
from contrast.evaluation.words import word_scores


@dataclass(frozen=True)
class Bench:
    """Everything an evaluation works on; `train` holds the labelled images that it may learn from."""

    encoder: Frozen
    train: Images | ImageFiles
    test: Images | ImageFiles
    cache: Path
    device: torch.device
    trainer: DictConfig
    batch_size: int = 512
    workers: int = 0
    seed: int = 0

    def features(self, images: Images | ImageFiles, what: str) -> Tensor:
        """Features [N, F] of the frozen encoder; computed once for this encoder and these images, then read."""
        key = digest(
            repr(self.encoder), self.encoder, images.pixels if isinstance(images, Images) else file_facts(images)
        )
        return cached_features(
            self.cache,
            key,
            lambda: features(
                self.encoder.to(self.device),
                images,
                batch_size=self.batch_size,
                device=self.device,
                desc=f"{what} features",
                workers=self.workers,
            ),
        )


def file_facts(images: ImageFiles) -> list[Any]:
    """What the features of image files depend on: the files, by name, size and time of change, and their decoding."""
    facts = [(images.root / name).stat() for name in images.names]
    files = [[str(name), fact.st_size, fact.st_mtime_ns] for name, fact in zip(images.names, facts, strict=True)]
    return [str(images.root), files, images.size, images.channels, images.on_error]


def knn(bench: Bench, k: int = 200, temperature: float = 0.07) -> dict[str, float]:
    """Weighted k-nearest-neighbour vote of the training features (Wu et al. 2018)."""
    train, test = bench.features(bench.train, "training"), bench.features(bench.test, "test")
    found = knn_score(train, bench.train.labels, test, bench.test.labels, k, temperature, device=bench.device)
    return {"top1": found.top1} | ({} if found.top5 is None else {"top5": found.top5})


def retrieval(bench: Bench, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall at k of captions for the test images, and of images for captions."""
    if not isinstance(bench.encoder, Towers):
        raise InputError("retrieval needs a checkpoint with an encoder of captions (method=clip or siglip)")
    if bench.test.text is None:
        raise InputError("retrieval needs captions, and this data set has none: data=captions, digits_words")
    return retrieval_figures(bench.encoder, bench.test, bench.device, ks)


def linear(
    bench: Bench, learning_rates: list[float] | None = None, weight_decays: list[float] | None = None, steps: int = 100
) -> dict[str, float]:
    """A linear probe, its learning rate and weight decay chosen on held-out training images."""
    found = linear_probe(
        bench.features(bench.train, "training"),
        bench.train.labels,
        bench.features(bench.test, "test"),
        bench.test.labels,
        learning_rates=learning_rates or LEARNING_RATES,
        weight_decays=weight_decays or WEIGHT_DECAYS,
        steps=steps,
        seed=bench.seed,
        device=bench.device,
    )
    figures = {
        "top1": found.test_top1,
        "val_top1": found.val_top1,
        "learning_rate": found.learning_rate,
        "weight_decay": found.weight_decay,
    }
    return figures | ({} if found.test_top5 is None else {"top5": found.test_top5})


@dataclass(frozen=True)
class WordBench:
    """Word vectors [V, D], the words of their rows, the most frequent first, and the files to measure them on."""

    words: Sequence[str]
    vectors: Tensor
    pairs: str | Sequence[str] | None = None
    analogies: str | None = None


def words(
    bench: WordBench, restrict: int | None = None, neighbours: Sequence[str] = (), k: int = 10
) -> dict[str, float]:
    """Spearman's correlation with the scores of word pairs, accuracy of analogies, coverage; prints nearest words."""
    pairs = [bench.pairs] if isinstance(bench.pairs, str | os.PathLike) else list(bench.pairs or ())
    lines = [(word, nearest(bench.vectors, bench.words, word, k)) for word in neighbours]
    found = word_scores(bench.words, bench.vectors, pairs, bench.analogies, restrict)
    if "mean" not in found:
        raise InputError(f"too few of the words to measure are among these {len(bench.words):,}: nothing is defined")
    for word, near in lines:
        print(f"nearest to {word}: {', '.join(f'{other} {cosine:.2f}' for other, cosine in near)}")
    return found
