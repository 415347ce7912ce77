"""Pretraining on text: word vectors or a language model, and what they are worth.

V classes: the words, and what else the model predicts.
"""

import functools
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from contrast.build import complete, plain
from contrast.callbacks.nonfinite import StopAfterNonFinite
from contrast.callbacks.throughput import Throughput
from contrast.data.corpus import Corpus
from contrast.data.spans import SpanData
from contrast.errors import InputError
from contrast.evaluation.words import neighbours, word_scores
from contrast.figures import write_metrics
from contrast.logs.curves import save_curves
from contrast.training import ending, last_loss, make_trainer, resume_point, say
from contrast.vectors import save_vectors
from contrast.words import WordVectors


def pretrain_text(cfg: DictConfig, corpus: Corpus, run_dir: Path) -> float | None:
    """Train the model of text that `cfg` describes; returns the figure `cfg.metric`, for sweeps."""
    with ending(run_dir):
        model = build_text(cfg, corpus)
        data = SpanData(corpus.ids, model.span, cfg.seed)
        throughput = Throughput("words", model.count)
        looking = [StopAfterNonFinite(), throughput, *looking_on(cfg, corpus)]
        trainer = make_trainer(cfg, run_dir, looking, -(-len(corpus.ids) // model.span))
        if isinstance(model, WordVectors) and trainer.world_size > 1:  # before Lightning starts the others
            raise InputError(f"word vectors train in one process, not {trainer.world_size}: model.workers=N")
        what = f"{corpus.total_words:,} words of {corpus.name}, {len(corpus.words):,} different ones"
        say(f"{cfg.name}: {what}; everything lies in {run_dir}")
        trainer.fit(model, data, ckpt_path=resume_point(cfg.resume))
        if not trainer.is_global_zero:
            return None
        found, told = worth(cfg, model, corpus, run_dir, trainer.strategy.root_device)
        figures = found | throughput.figures() | last_loss(run_dir)
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

    Its parts are partials that are called with those of these facts that their signatures name: `size` V and `counts`
    [V] for all; `dim`, the encoder's features, for negatives and head; for the model itself these three, the optimiser,
    the scheduler, the seed and the configuration.
    """
    if cfg.model is None:
        raise InputError(f"{corpus.name} is text: it needs a model of text, as experiment=skipgram has")
    make = instantiate(cfg.model)
    if not isinstance(make, functools.partial):
        raise InputError("the model of text has to be a partial: _partial_: true")
    pl.seed_everything(cfg.seed, verbose=False)
    counts: torch.Tensor = make.func.counts(corpus)  # type: ignore[attr-defined]
    facts: dict[str, Any] = {"size": len(counts), "counts": counts}
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
    return complete(make, facts | parts)


def worth(
    cfg: DictConfig, model: Any, corpus: Corpus, run_dir: Path, device: torch.device
) -> tuple[dict[str, float], str]:
    """The final figures, and what is printed of them; word vectors are saved first."""
    if not isinstance(model, WordVectors):
        figures = model.figures(corpus, device)
        return figures, model.table(figures)
    chosen, vectors = cfg.evaluation, model.vectors()
    for name in chosen.files:
        save_vectors(run_dir / name, corpus.words, vectors)
    pairs = [chosen.pairs] if isinstance(chosen.pairs, str) else list(chosen.pairs or [])
    asked = bool(pairs or chosen.analogies)
    figures = word_scores(corpus.words, vectors, pairs, chosen.analogies, chosen.restrict) if asked else {}
    lines = [f"{name:<34}{value:>9.4f}" for name, value in figures.items()]
    for word in chosen.neighbours:
        if word in corpus.number:
            near = ", ".join(
                f"{other} {cosine:.2f}" for other, cosine in neighbours(vectors, corpus.words, word, chosen.k)
            )
            lines.append(f"{word}: {near}")
    return figures, "\n".join(lines)
