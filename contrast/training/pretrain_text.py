"""Pretraining on text: train word vectors or a language model, then evaluate it."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from contrast.data.loader import SpanData
from contrast.data.text.corpus import Corpus
from contrast.data.text.vectors import file_format, save_vectors
from contrast.errors import InputError
from contrast.evaluation.encoder import VECTORS
from contrast.evaluation.words import nearest_words, score_names, word_scores
from contrast.facts import complete
from contrast.training.build import build_text
from contrast.training.callbacks.nonfinite import StopAfterNonFinite
from contrast.training.callbacks.throughput import Throughput
from contrast.training.trainer import check_settings, closing, fit, make_trainer, print_once, save_results
from contrast.words import LanguageModel, WordVectors


def pretrain_text(cfg: DictConfig, corpus: Corpus, run_dir: Path) -> float | None:
    """Trains the model of text that `cfg` describes; returns the metric `cfg.metric`, for sweeps."""
    check_settings(cfg)
    with closing(run_dir):
        model = build_text(cfg, corpus)
        throughput = Throughput("words", model.count)
        check_requested(cfg, model, corpus, {"loss", *throughput.metrics()})
        callbacks = [complete(instantiate(node), {"corpus": corpus}) for node in (cfg.get("callbacks") or {}).values()]
        trainer = make_trainer(cfg, run_dir, [StopAfterNonFinite(), throughput, *callbacks])
        check_trainer(trainer, model)
        print_once(
            f"{cfg.name}: {corpus.total_words:,} words of {corpus.name}, {len(corpus.words):,} different ones; "
            f"the run folder is {run_dir}"
        )
        try:
            fit(trainer, model, SpanData(corpus.ids, model.chunk, cfg.seed), cfg.resume)
        finally:
            model.teardown("fit")  # which Lightning leaves out after an error: workers end, torch has its threads back
        if not trainer.is_global_zero:
            return None
        if isinstance(model, WordVectors):
            scores, report = evaluate_vectors(cfg.evaluation, model, corpus, run_dir)
        else:
            scores = model.metrics(corpus, trainer.strategy.root_device)
            report = model.table(scores)
        metrics = save_results(trainer, run_dir, throughput, scores)
        print_once(f"{report}\n{run_dir}")
        if cfg.metric not in metrics:
            raise InputError(f"metric={cfg.metric} is not among the metrics: {', '.join(sorted(metrics))}")
        return metrics[cfg.metric]


def check_requested(cfg: DictConfig, model: WordVectors | LanguageModel, corpus: Corpus, names: set[str]) -> None:
    """Raises InputError for what would fail after the training: a file, or a metric that will not be measured.

    names  metrics of every run
    """
    if isinstance(model, WordVectors):
        if cfg.get("evaluation") is None:
            raise InputError("word vectors are saved and measured as evaluation=words says, and there is no evaluation")
        for file in files_of(cfg.evaluation):
            file_format(file)
        names = names | score_names(pairs_of(cfg.evaluation), cfg.evaluation.analogies)
    else:
        names = names | model.metric_names(corpus)
    if cfg.metric not in names:
        none = "; no text is held out for it: data.held_out=0.05" if cfg.metric == "perplexity" else ""
        raise InputError(f"metric={cfg.metric} will not be among the metrics: {', '.join(sorted(names))}{none}")


def check_trainer(trainer: pl.Trainer, model: WordVectors | LanguageModel) -> None:
    """Raises InputError for a trainer that models of text cannot use, before Lightning starts other processes."""
    if trainer.world_size > 1:
        raise InputError(f"models of text train on one device, not on {trainer.world_size}: trainer.devices=1")
    if isinstance(model, WordVectors) and trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise InputError("the learning rate of word vectors falls over a known number of steps: trainer.max_epochs=5")


def files_of(evaluation: DictConfig) -> list[str]:
    """The files that vectors are saved in: the one that contrast-evaluate reads, and those that are requested."""
    return list(dict.fromkeys([VECTORS, *(evaluation.files or [])]))


def pairs_of(evaluation: DictConfig) -> list[str]:
    """The files of word pairs of an evaluation: one name or a list of them."""
    return [evaluation.pairs] if isinstance(evaluation.pairs, str) else list(evaluation.pairs or [])


def evaluate_vectors(
    evaluation: DictConfig, model: WordVectors, corpus: Corpus, run_dir: Path
) -> tuple[dict[str, float], str]:
    """Saves the vectors; returns their metrics and a report of these and of the requested nearest words."""
    vectors: torch.Tensor = model.vectors()
    for name in files_of(evaluation):
        save_vectors(run_dir / name, corpus.words, vectors)
    pairs, metrics = pairs_of(evaluation), model.metrics()
    if pairs or evaluation.analogies:
        metrics |= word_scores(corpus.words, vectors, pairs, evaluation.analogies, evaluation.restrict)
    lines = [f"{name:<34}{value:>9.4f}" for name, value in metrics.items()]
    for word in evaluation.neighbours:
        if word not in corpus.number:
            lines.append(f"{word}: none of the {len(corpus.words):,} words")
            continue
        near = nearest_words(vectors, corpus.words, word, evaluation.k)
        lines.append(f"{word}: " + ", ".join(f"{other} {cosine:.2f}" for other, cosine in near))
    return metrics, "\n".join(lines)
