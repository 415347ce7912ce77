"""Pretraining on text: train word vectors or a language model, then evaluate it."""

from pathlib import Path

import torch
from omegaconf import DictConfig

from contrast.data.text.corpus import Corpus
from contrast.data.text.vectors import check_floret, file_format, save_vectors
from contrast.encoders import SubwordTable
from contrast.errors import InputError
from contrast.evaluation.encoder import VECTORS
from contrast.evaluation.words import as_list, neighbour_lines, score_names, word_scores
from contrast.negatives import Table
from contrast.run.folder import metric_of
from contrast.training.build import build_text
from contrast.training.callbacks.nonfinite import StopAfterNonFinite
from contrast.training.callbacks.progress import Throughput
from contrast.training.data import SpanData
from contrast.training.trainer import bare_trainer, callbacks_of, train
from contrast.words import LanguageModel, WordVectors
from contrast.words.learned import check_learned
from contrast.words.sharded import check_ranks
from contrast.words.start import FEW


def pretrain_text(cfg: DictConfig, corpus: Corpus, run_dir: Path) -> float | None:
    """Trains the model of text that `cfg` describes; returns the metric `cfg.metric`, for sweeps."""
    model = build_text(cfg, corpus)
    throughput = Throughput("words", model.count)
    check_text(cfg, model, corpus, {"loss", *throughput.metrics()})

    def evaluate(device: torch.device) -> tuple[dict[str, float], str]:
        if isinstance(model, WordVectors):
            return evaluate_vectors(cfg, model, corpus, run_dir)
        scores = model.metrics(corpus, device)
        return scores, model.table(scores)

    data = SpanData(corpus.ids, model.chunk, cfg.seed, isinstance(model, WordVectors), corpus.parts, corpus)
    callbacks = [StopAfterNonFinite(), throughput, *callbacks_of(cfg, {"corpus": corpus})]
    title = f"{corpus.total_words:,} words of {corpus.name}, {len(corpus.words):,} in the vocabulary"
    if isinstance(model, WordVectors):
        number = round(model.kept_share * int(corpus.counts.sum()))
        title += f"; {number:,}, {number / corpus.total_words:.0%}, are trained on in an epoch{few_words(model)}"
    try:
        metrics = train(cfg, run_dir, model, data, callbacks, title, evaluate)
    finally:
        model.teardown("fit")  # Lightning omits it after an error. It ends the workers and restores torch's threads
    return None if metrics is None else metric_of(metrics, cfg.metric)


def check_text(cfg: DictConfig, model: WordVectors | LanguageModel, corpus: Corpus, names: set[str]) -> None:
    """Raises InputError for what would fail in or after the training: devices, files, or a metric that is not measured.

    names  metrics of every run
    """
    trainer = bare_trainer(cfg.trainer)
    if corpus.parts is not None and len(corpus.parts) != trainer.world_size:
        raise InputError(f"{len(corpus.parts)} ranks have read the text, and {trainer.world_size} train on it")
    if isinstance(model, WordVectors):
        reason = model.check_compiled()
        if trainer.world_size > 1:
            check_ranks(model.workers, reason is None, model.encoder, model.negatives, model.head)
        if trainer.max_epochs == -1 and trainer.max_steps == -1:
            raise InputError("the rate of word vectors falls over a known number of steps: trainer.max_epochs=5")
        if cfg.get("evaluation") is None:
            raise InputError("word vectors are saved and measured as evaluation=words says, and there is no evaluation")
        output = [cfg.evaluation.output] if cfg.evaluation.get("output") else []
        if output and not isinstance(model.negatives, Table):
            raise InputError("evaluation.output saves the output vectors of words, and a Tree has none")
        for file in [*files_of(cfg.evaluation), *output]:
            file_format(file)
            check_floret(file, file not in output and getattr(model.encoder, "hashes", 0) > 0)
            if Path(file).name != file:
                raise InputError(
                    f"evaluation.files and evaluation.output are names in the run folder, not paths: {file}"
                )
        names = names | score_names(as_list(cfg.evaluation.pairs), cfg.evaluation.analogies)
    else:
        if corpus.parts is not None:
            raise InputError("data.over_ranks=true is for word vectors: a language model reads all text on each rank")
        names = names | model.metric_names(corpus)
    if cfg.metric not in names:
        none = "; no text is held out for it: data.held_out=0.05" if cfg.metric == "perplexity" else ""
        raise InputError(f"metric={cfg.metric} will not be among the metrics: {', '.join(sorted(names))}{none}")


def few_words(model: WordVectors) -> str:
    """A warning where subsampling, which is made for large vocabularies, leaves little of a small one."""
    if model.kept_share >= FEW:
        return ""
    return f"\nwarning: subsample={model.subsample:g} drops the rest; with few different words raise it, 0 keeps all"


def files_of(evaluation: DictConfig) -> list[str]:
    """The files that vectors are saved in: the one that contrast-evaluate reads, and those that are requested."""
    return list(dict.fromkeys([VECTORS, *(evaluation.files or [])]))


def evaluate_vectors(
    cfg: DictConfig, model: WordVectors, corpus: Corpus, run_dir: Path
) -> tuple[dict[str, float], str]:
    """Saves the vectors; returns their metrics and a report of these and of the requested nearest words."""
    vectors: torch.Tensor = model.vectors()
    evaluation, limit = cfg.evaluation, cfg.trainer.get("limit_train_batches")
    cut_short = limit is not None and (isinstance(limit, int) or limit < 1)
    warning = check_learned(model, corpus.ids[: model.chunk], int(corpus.counts.sum()), cut_short)
    subwords = model.encoder.subwords() if isinstance(model.encoder, SubwordTable) else None
    for name in files_of(evaluation):
        save_vectors(run_dir / name, corpus.words, vectors, None if subwords is None else subwords.tensors())
    if evaluation.get("output"):
        save_vectors(run_dir / evaluation.output, corpus.words, model.negatives.vectors.detach().cpu())
    pairs, metrics = as_list(evaluation.pairs), model.metrics()
    if pairs or evaluation.analogies:
        metrics |= word_scores(
            corpus.words, vectors, pairs, evaluation.analogies, evaluation.restrict, subwords=subwords
        )
    lines = [f"{name:<34}{value:>9.4f}" for name, value in metrics.items()]
    lines += neighbour_lines(vectors, corpus.words, evaluation.neighbours, evaluation.k, subwords)
    if warning:
        lines.append(warning)
    return metrics, "\n".join(lines)
