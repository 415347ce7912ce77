"""The only place that turns a resolved configuration into a model, for new runs and old checkpoints alike.

Parts of the configuration are called with the facts that `contrast.facts` lists.
"""

import inspect
from collections.abc import Mapping
from typing import Any, cast

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from contrast.data.images.image_set import ImageFiles, Images
from contrast.data.text.corpus import Corpus
from contrast.data.text.tokenizer import Tokenizer
from contrast.encoders.contract import check_view_sizes
from contrast.encoders.normalize import Normalize
from contrast.errors import InputError
from contrast.facts import complete
from contrast.heads import NCE, AdaptiveSoftmax
from contrast.module import Contrastive
from contrast.negatives import Bank, Source, Table, Targets, Tree
from contrast.words import LanguageModel, WordVectors


def part(node: DictConfig | None, facts: Mapping[str, object]) -> Any:
    """What the configuration `node` builds with the facts that its constructor needs; None for None."""
    return complete(instantiate(node, _partial_=True), facts)


def build(cfg: DictConfig, images: Images | ImageFiles, tokenizer: Tokenizer | None = None) -> Contrastive:
    """The model on images that `cfg` describes; the tokenizer is that of the images' captions."""
    counts = id_counts(images, cfg.same_label)
    encoder = instantiate(cfg.encoder, in_channels=images.channels, image_size=images.size)
    views = instantiate(cfg.views, **({} if cfg.views.get("size") else {"size": images.size}))
    check_view_sizes(encoder, images.channels, images.size, getattr(views, "sizes", []))
    projector = instantiate(cfg.projector, in_features=encoder.num_features)
    normalize = Normalize(*images.statistics())
    captions: dict[str, object] = {}
    if images.text is not None and tokenizer is not None:
        captions = {"vocabulary": tokenizer.size, "length": images.text.shape[1], "tokenizer": tokenizer.facts()}
    dim = projector.num_features
    facts = {"dim": dim, "in_features": dim, "num_ids": len(counts), "counts": counts}
    trained = {"normalize": normalize, "encoder": encoder, "projector": projector}
    negatives, head = part(cfg.negatives, facts), part(cfg.head, facts)
    check_negatives(negatives, images, cfg.same_label)
    check_output(negatives, head)
    image_facts = {"channels": images.channels, "size": images.size, "ids": len(counts)}
    return Contrastive(
        **trained,
        views=views,
        key=part(cfg.key, facts | trained | captions),
        predictor=part(cfg.get("predictor"), facts),
        negatives=negatives,
        head=head,
        optimizer=instantiate(cfg.optimizer, _partial_=True),
        scheduler=instantiate(cfg.scheduler, _partial_=True),
        same_label=cfg.same_label,
        seed=cfg.seed,
        one_forward_pass=cfg.one_forward_pass,
        micro_batch=cfg.micro_batch,
        config={**plain(cfg), "images": image_facts, "text": captions},  # what an evaluation of the checkpoint needs
    )


def build_text(cfg: DictConfig, corpus: Corpus) -> WordVectors | LanguageModel:
    """The model of text that `cfg` describes for `corpus`, a function of the configuration and its seed alone."""
    make = instantiate(cfg.model, _partial_=True)
    kind = cast(type[WordVectors] | type[LanguageModel], make.func)
    optional = [name for name in ("optimizer", "scheduler") if cfg.get(name) is not None]
    unused = [name for name in optional if name not in inspect.signature(kind).parameters]
    if unused:
        raise InputError(f"{kind.__name__} has no use for an {' and a '.join(unused)}: leave it out")
    pl.seed_everything(cfg.seed, verbose=False)
    counts = kind.counts(corpus)
    facts: dict[str, object] = {"num_ids": len(counts), "counts": counts}
    encoder = part(cfg.encoder, facts)
    facts["dim"] = encoder.num_features
    negatives, head = part(cfg.negatives, facts), part(cfg.head, facts)
    check_output(negatives, head)
    parts = {"encoder": encoder, "negatives": negatives, "head": head, "counts": counts}
    parts |= {name: instantiate(cfg[name], _partial_=True) for name in optional}
    return make(**parts, words=corpus.words, seed=cfg.seed, config=plain(cfg))


def check_negatives(negatives: Source, images: Images | ImageFiles, same_label: str) -> None:
    """Raises InputError if the source of negatives cannot treat the images' labels as `same_label` says."""
    name, unlabelled = type(negatives).__name__, int((images.labels < 0).sum())
    if negatives.needs_labels and same_label != "positive":
        raise InputError(f"{name} holds classes: it needs same_label=positive, not {same_label}")
    if same_label == "ignored" and not negatives.supports_groups:
        raise InputError(f"{name} does not leave out images with a query's label: same_label=negative or positive")
    if negatives.ids_are_rows and same_label == "positive" and unlabelled:
        raise InputError(f"{name} has a row for each class, but {unlabelled} of {len(images)} images have no label")


def check_output(negatives: Source, head: torch.nn.Module) -> None:
    """Raises InputError if a table, tree or bank and the head are no output layer together."""
    source, loss = type(negatives).__name__, type(head).__name__
    if isinstance(negatives, Targets) != isinstance(head, AdaptiveSoftmax):
        raise InputError(f"{loss} over {source}: AdaptiveSoftmax goes with Targets alone (output=adaptive_softmax)")
    if isinstance(negatives, Tree) and not isinstance(head, NCE):
        raise InputError(
            f"the nodes of a Tree are all positive: it needs NCE, not {loss} (output=hierarchical_softmax)"
        )
    whole = isinstance(negatives, Table | Bank) and negatives.sampler is None
    if whole and getattr(negatives, "proximity", None) is None and isinstance(head, NCE):
        raise InputError(
            f"{loss} compares the true row with rows that a sampler draws, and this {source} has no sampler: "
            "output=nce and output=negative_sampling set both, InfoNCE scores every row"
        )


def id_counts(images: Images | ImageFiles, same_label: str) -> torch.Tensor:
    """How often each id occurs in an epoch, [number of ids] int64: a label with same_label=positive, else a row.

    Raises InputError if labels are needed and no image has one.
    """
    labels = images.labels[images.labels >= 0]
    if same_label != "negative" and len(labels) == 0:
        raise InputError(f"same_label={same_label} needs labels, and none of the {len(images)} images has one")
    if same_label != "positive":
        return torch.ones(len(images), dtype=torch.int64)
    return torch.bincount(labels, minlength=len(images.classes))


def plain(cfg: DictConfig) -> dict[str, object]:
    """The configuration as resolved plain containers."""
    return cast(dict[str, object], OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
