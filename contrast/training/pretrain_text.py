"""Pretraining on text: train word vectors or a language model, then evaluate it."""

from pathlib import Path

import torch
from omegaconf import DictConfig

from contrast.data.loader import SpanData
from contrast.data.text.corpus import Corpus
from contrast.data.text.vectors import file_format, save_vectors
from contrast.errors import InputError
from contrast.evaluation.encoder import VECTORS
from contrast.evaluation.words import nearest_words, score_names, word_scores
from contrast.run.folder import metric_of
from contrast.training.build import build_text
from contrast.training.callbacks.nonfinite import StopAfterNonFinite
from contrast.training.callbacks.progress import Throughput
from contrast.training.trainer import bare_trainer, callbacks_of, check_settings, train
from contrast.words import LanguageModel, WordVectors


def pretrain_text(cfg: DictConfig, corpus: Corpus, run_dir: Path) -> float | None:
    """Trains the model of text that `cfg` describes; returns the metric `cfg.metric`, for sweeps."""
    check_settings(cfg)
    model = build_text(cfg, corpus)
    throughput = Throughput("words", model.count)
    check_text(cfg, model, corpus, {"loss", *throughput.metrics()})

    def evaluate(device: torch.device) -> tuple[dict[str, float], str]:
        if isinstance(model, WordVectors):
            return evaluate_vectors(cfg.evaluation, model, corpus, run_dir)
        scores = model.metrics(corpus, device)
        return scores, model.table(scores)

    data = SpanData(corpus.ids, model.chunk, cfg.seed)
    callbacks = [StopAfterNonFinite(), throughput, *callbacks_of(cfg, {"corpus": corpus})]
    title = f"{corpus.total_words:,} words of {corpus.name}, {len(corpus.words):,} different ones"
    try:
        metrics = train(cfg, run_dir, model, data, callbacks, title, evaluate)
    finally:
        model.teardown("fit")  # which Lightning leaves out after an error: workers end, torch has its threads back
    return None if metrics is None else metric_of(metrics, cfg.metric)


def check_text(cfg: DictConfig, model: WordVectors | LanguageModel, corpus: Corpus, names: set[str]) -> None:
    """Raises InputError for what would fail in or after the training: devices, files, or a metric that is not measured.

    names  metrics of every run
    """
    trainer = bare_trainer(cfg.trainer)
    if trainer.world_size > 1:
        raise InputError(f"models of text train on one device, not on {trainer.world_size}: trainer.devices=1")
    if isinstance(model, WordVectors):
        if trainer.max_epochs == -1 and trainer.max_steps == -1:
            raise InputError(
                "the learning rate of word vectors falls over a known number of steps: trainer.max_epochs=5"
            )
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
