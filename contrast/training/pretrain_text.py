"""Pretraining on text: word vectors or a language model, and what they are worth.

V classes: the words, and what else the model predicts.
"""

import functools
import inspect
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from contrast.data.text.corpus import Corpus
from contrast.data.text.spans import SpanData
from contrast.data.text.vectors import file_format, save_vectors
from contrast.errors import InputError
from contrast.evaluation.encoder import VECTORS
from contrast.evaluation.report import write_metrics
from contrast.evaluation.words import nearest_words, score_names, word_scores
from contrast.facts import complete
from contrast.run.curves import save_curves
from contrast.training.build import plain
from contrast.training.callbacks.nonfinite import StopAfterNonFinite
from contrast.training.callbacks.throughput import Throughput
from contrast.training.trainer import ending, last_loss, make_trainer, resume_point, say
from contrast.words import WordVectors


def pretrain_text(cfg: DictConfig, corpus: Corpus, run_dir: Path) -> float | None:
    """Train the model of text that `cfg` describes; returns the figure `cfg.metric`, for sweeps."""
    with ending(run_dir):
        model = build_text(cfg, corpus)
        data = SpanData(corpus.ids, model.chunk, cfg.seed)
        throughput = Throughput("words", model.count)
        check_wishes(cfg, model, corpus, {"loss", *throughput.figures()})
        looking = [StopAfterNonFinite(), throughput, *looking_on(cfg, corpus)]
        trainer = make_trainer(cfg, run_dir, looking, -(-len(corpus.ids) // model.chunk))
        if trainer.world_size > 1:  # before Lightning starts the others
            raise InputError(f"models of text train on one device, not on {trainer.world_size}: trainer.devices=1")
        what = f"{corpus.total_words:,} words of {corpus.name}, {len(corpus.words):,} different ones"
        say(f"{cfg.name}: {what}; everything lies in {run_dir}")
        try:
            trainer.fit(model, data, ckpt_path=resume_point(cfg.resume))
        finally:
            model.teardown("fit")  # which Lightning leaves out after an error: workers end, torch has its threads back
        if not trainer.is_global_zero:
            return None
        found, told = worth(cfg, model, corpus, run_dir, trainer.strategy.root_device)
        figures = throughput.figures() | last_loss(run_dir) | found
        for logger in trainer.loggers:
            logger.log_metrics({f"final/{name}": value for name, value in figures.items()}, trainer.global_step)
        write_metrics(run_dir, figures)
        save_curves(run_dir)
        say(f"{told}\n{run_dir}")
        if cfg.metric not in figures:
            raise InputError(f"metric={cfg.metric} is not among the figures: {', '.join(sorted(figures))}")
        return figures[cfg.metric]


def looking_on(cfg: DictConfig, corpus: Corpus) -> list[pl.Callback]:
    """The callbacks of `cfg`; a partial is called with `corpus`."""
    return [complete(instantiate(node), {"corpus": corpus}) for node in (cfg.get("callbacks") or {}).values()]


def build_text(cfg: DictConfig, corpus: Corpus) -> Any:
    """The model that `cfg` describes for `corpus`, a function of the configuration and its seed alone.

    Its parts are partials that are called with those of these facts that their signatures name: `size` V, `counts`
    [V] and `words` for all; `dim`, the encoder's features, for negatives and head; for the model itself these, the
    optimiser, the scheduler, the seed and the configuration.
    """
    if cfg.model is None:
        raise InputError(f"{corpus.name} is text: it needs a model of text, as experiment=skipgram has")
    make = instantiate(cfg.model)
    if not isinstance(make, functools.partial):
        raise InputError("the model of text has to be a partial: _partial_: true")
    pl.seed_everything(cfg.seed, verbose=False)
    counts: torch.Tensor = make.func.counts(corpus)  # type: ignore[attr-defined]
    facts: dict[str, Any] = {"size": len(counts), "counts": counts, "words": corpus.words}
    encoder = complete(instantiate(cfg.encoder), facts)
    facts["dim"] = encoder.num_features
    parts = {
        "encoder": encoder,
        "negatives": complete(instantiate(cfg.negatives), facts),
        "head": complete(instantiate(cfg.head), facts),
        "optimizer": instantiate(cfg.get("optimizer")),
        "scheduler": instantiate(cfg.get("scheduler")),
        "seed": cfg.seed,
        "config": plain(cfg),
    }
    takes = inspect.signature(make.func).parameters
    unused = [name for name in ("optimizer", "scheduler") if parts[name] is not None and name not in takes]
    if unused:
        raise InputError(f"{make.func.__name__} has no use for an {' and a '.join(unused)}: leave it out")
    return complete(make, facts | parts)


def check_wishes(cfg: DictConfig, model: Any, corpus: Corpus, names: set[str]) -> None:
    """InputError for what would fail after the training: files to read or write, or a metric that is not measured.

    names  of the figures that every run has
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
        raise InputError(f"metric={cfg.metric} will not be among the figures: {', '.join(sorted(names))}{none}")


def files_of(chosen: DictConfig) -> list[str]:
    """The files that vectors leave in: always the one that contrast-evaluate reads, and others that are asked for."""
    return list(dict.fromkeys([VECTORS, *(chosen.files or [])]))


def pairs_of(chosen: DictConfig) -> list[str]:
    """The files of word pairs of an evaluation: one name or a list of them."""
    return [chosen.pairs] if isinstance(chosen.pairs, str) else list(chosen.pairs or [])


def worth(
    cfg: DictConfig, model: Any, corpus: Corpus, run_dir: Path, device: torch.device
) -> tuple[dict[str, float], str]:
    """The final figures, and what is printed of them; word vectors are saved first."""
    if not isinstance(model, WordVectors):
        figures = model.metrics(corpus, device)
        return figures, model.table(figures)
    chosen, vectors = cfg.evaluation, model.vectors()
    for name in files_of(chosen):
        save_vectors(run_dir / name, corpus.words, vectors)
    pairs = pairs_of(chosen)
    asked = bool(pairs or chosen.analogies)
    figures = model.metrics()
    if asked:
        figures |= word_scores(corpus.words, vectors, pairs, chosen.analogies, chosen.restrict)
    lines = [f"{name:<34}{value:>9.4f}" for name, value in figures.items()]
    for word in chosen.neighbours:
        if word not in corpus.number:
            lines.append(f"{word}: none of the {len(corpus.words):,} words")
            continue
        near = nearest_words(vectors, corpus.words, word, chosen.k)
        lines.append(f"{word}: " + ", ".join(f"{other} {cosine:.2f}" for other, cosine in near))
    return figures, "\n".join(lines)
