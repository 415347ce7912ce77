"""The only place that turns a resolved configuration into a model, for new runs and old checkpoints alike.

Parts of the configuration are called with the facts that `contrast.config.facts` lists.
"""

import inspect
import logging
from collections.abc import Mapping
from typing import Any, cast

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from contrast.config.facts import complete
from contrast.data.images.image_set import ImageFiles, Images
from contrast.data.text.corpus import Corpus
from contrast.data.text.tokenizer import Tokenizer
from contrast.encoders.contract import check_view_sizes
from contrast.encoders.normalize import Normalize
from contrast.encoders.pretrained import statistics_of
from contrast.errors import InputError, making
from contrast.evaluation.encoder import without_weights
from contrast.evaluation.retrieval import distinct, image_keys
from contrast.grad_cache import equal_parts
from contrast.heads import NCE, AdaptiveSoftmax, Alignment, Covariance, CrossCorrelation, InfoNCE
from contrast.keys import Momentum, Second, Shared
from contrast.module import Contrastive
from contrast.negatives import Bank, Dimensions, PositivesOnly, Source, Table, Targets, Tree
from contrast.run.folder import NOT_OF_A_RUN
from contrast.training.teacher import FrozenTeacher
from contrast.words import LanguageModel, WordVectors

log = logging.getLogger(__name__)


def part(cfg: DictConfig, key: str, facts: Mapping[str, object]) -> Any:
    """What `cfg[key]` builds with the facts that its constructor needs; None for None.

    Whatever a constructor raises is an InputError that names the key.
    """
    with making(key):
        return complete(instantiate(cfg.get(key), _partial_=True), facts)


def build(cfg: DictConfig, images: Images | ImageFiles, tokenizer: Tokenizer | None = None) -> Contrastive:
    """The model on images that `cfg` describes; the tokenizer is that of the images' captions.

    A resumed run has its weights in the checkpoint, so the pretrained weights that it started from are not read again.
    """
    whole = plain(cfg)
    if cfg.get("resume") is not None:
        encoders = {key: without_weights(whole[key]) for key in ("encoder", "key") if not is_teacher(whole[key])}
        cfg = OmegaConf.create({**whole, **encoders})  # elsewhere `weights` are an argument like any other
    counts = id_counts(images, cfg.same_label)
    encoder = instantiate(cfg.encoder, in_channels=images.channels, image_size=images.size)
    views = instantiate(cfg.views, **({} if cfg.views.get("size") else {"size": images.size}))
    check_view_sizes(encoder, images.channels, images.size, getattr(views, "sizes", []))
    projector = instantiate(cfg.projector, in_features=encoder.num_features)
    normalize = Normalize(*statistics_of(encoder, images))
    captions: dict[str, object] = {}
    if images.text is not None and tokenizer is not None:
        captions = {"vocabulary": tokenizer.size, "length": images.text.shape[1], "tokenizer": tokenizer.facts()}
        warn_of_views(views, images)
    dim = projector.num_features
    facts = {"dim": dim, "in_features": dim, "num_ids": len(counts), "counts": counts}
    trained = {"normalize": normalize, "encoder": encoder, "projector": projector}
    negatives, head = part(cfg, "negatives", facts), part(cfg, "head", facts)
    check_negatives(negatives, images, cfg.same_label)
    check_output(negatives, head)
    key = part(cfg, "key", facts | trained | captions | {"images": images})
    check_views(key, len(getattr(views, "sizes", [])))
    image_facts = {"channels": images.channels, "size": images.size, "ids": len(counts), "square": is_square(images)}
    model = Contrastive(
        **trained,
        views=views,
        key=key,
        predictor=part(cfg, "predictor", facts),
        negatives=negatives,
        head=head,
        optimizer=instantiate(cfg.optimizer, _partial_=True),
        scheduler=instantiate(cfg.scheduler, _partial_=True),
        same_label=cfg.same_label,
        seed=cfg.seed,
        one_forward_pass=cfg.one_forward_pass,
        micro_batch=cfg.micro_batch,
        activation_checkpointing=bool(cfg.get("activation_checkpointing")),  # absent from older runs
        shared=shared_numbers(images, key) if negatives.supports_groups else None,
        config={**whole, "images": image_facts, "text": captions},  # what an evaluation of the checkpoint needs
    )
    if empty := [f"{name} {list(each.shape)}" for name, each in model.named_parameters() if each.numel() == 0]:
        raise InputError(f"a layer of width 0, which torch would accept: {empty[0]}")
    return model


def shared_numbers(images: Images | ImageFiles, key: torch.nn.Module) -> torch.Tensor | None:
    """Numbers of the image and, if captions are the keys, of the caption of each row, [N, K]; None if all differ."""
    if images.text is None:
        return None
    of_image = distinct(image_keys(images))[1]
    columns = [of_image, distinct(images.text.numpy())[1]] if isinstance(key, Second) else [of_image]
    return torch.stack(columns, dim=1) if any(len(column.unique()) < len(images) for column in columns) else None


def is_teacher(node: object) -> bool:
    """Whether the configuration `node` builds a teacher, whose weights are in no checkpoint of the student."""
    return instantiate(node, _partial_=True, _recursive_=False).func is FrozenTeacher


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
    facts: dict[str, object] = {"num_ids": len(counts), "counts": counts, "words": corpus.words}
    encoder = part(cfg, "encoder", facts)
    facts["dim"] = encoder.num_features
    negatives, head = part(cfg, "negatives", facts), part(cfg, "head", facts)
    check_output(negatives, head)
    parts = {"encoder": encoder, "negatives": negatives, "head": head, "counts": counts}
    parts |= {name: instantiate(cfg[name], _partial_=True) for name in optional}
    if cfg.get("resume") is not None and kind is WordVectors:
        parts |= {"vectors": None, "output_vectors": None}  # the checkpoint has them
    return make(**parts, words=corpus.words, seed=cfg.seed, config=plain(cfg))


def check_batch_norm(model: Contrastive, images: int) -> None:
    """Raises InputError if a batch norm without pixels would get a single row of the `images` of this rank."""
    smallest = min(part.stop - part.start for part in equal_parts(images, model.micro_batch or images))
    sizes = getattr(model.views, "sizes", [0, 0])[: model.key.num_queries]
    alone = not model.one_forward_pass or isinstance(model.key, Momentum)
    rows = smallest * (1 if alone else min(sizes.count(size) for size in sizes))
    if rows == 1 and any(isinstance(each, torch.nn.BatchNorm1d) for each in model.modules()):
        raise InputError("batch norm needs 2 images or more in a pass: batch_size and micro_batch leave 1 on a device")


def check_views(key: Shared, views: int) -> None:
    """Raises InputError if some of the `views` views would be neither queries nor keys."""
    queries = min(key.num_queries or views, views)
    unused = set(range(queries, views)) - set(key.partners(queries, views) if queries < views else [])
    if unused:
        raise InputError(
            f"{len(unused)} of {views} views are neither queries nor keys: key.num_queries=null makes all queries, "
            f"views.views={views - len(unused)} leaves them out"
        )


def check_negatives(negatives: Source, images: Images | ImageFiles, same_label: str) -> None:
    """Raises InputError if the source of negatives cannot treat the images' labels as `same_label` says."""
    name, unlabelled = type(negatives).__name__, int((images.labels < 0).sum())
    if negatives.needs_labels and same_label != "positive":
        raise InputError(f"{name} holds classes: it needs same_label=positive, not {same_label}")
    if same_label == "ignored" and not negatives.supports_groups:
        raise InputError(f"{name} does not leave out images with a query's label: same_label=negative or positive")
    if negatives.ids_are_rows and same_label == "positive" and unlabelled:
        raise InputError(f"{name} has a row for each class, but {unlabelled} of {len(images)} images have no label")


ONLY_TOGETHER = (  # a source, the heads that it needs and that need it, and the setting that chooses both
    (Targets, (AdaptiveSoftmax,), "output=adaptive_softmax"),
    (PositivesOnly, (Alignment,), "method=byol, method=simsiam"),
    (Dimensions, (CrossCorrelation, Covariance), "method=barlow_twins, method=vicreg"),
)


def check_output(negatives: Source, head: torch.nn.Module) -> None:
    """Raises InputError if the source and the head do not go together."""
    source, loss = type(negatives).__name__, type(head).__name__
    for only_source, only_heads, setting in ONLY_TOGETHER:
        if isinstance(negatives, only_source) != isinstance(head, only_heads):
            names = " and ".join(each.__name__ for each in only_heads)
            raise InputError(f"{loss} over {source}: {names} and {only_source.__name__} go together alone ({setting})")
    if isinstance(negatives, Dimensions) and (negatives.among == "queries") != isinstance(head, Covariance):
        raise InputError(f"{loss} over dimensions among={negatives.among}: Covariance needs queries, others keys")
    if getattr(negatives, "teacher_temperature", None) is not None and not isinstance(head, InfoNCE):
        raise InputError(f"{source} has a teacher's targets, which InfoNCE alone takes, not {loss}")
    if isinstance(negatives, Tree) and not isinstance(head, NCE):
        raise InputError(f"the nodes of a Tree are all positive: it needs NCE, not {loss}: output=hierarchical_softmax")
    whole = isinstance(negatives, Table | Bank) and negatives.sampler is None
    if whole and getattr(negatives, "proximity", None) is None and isinstance(head, NCE):
        raise InputError(
            f"{loss} compares the true row with rows that a sampler draws, and this {source} has no sampler: "
            "output=nce and output=negative_sampling set both, InfoNCE scores every row"
        )


def is_square(images: Images | ImageFiles) -> bool:
    return isinstance(images, ImageFiles) or images.pixels.shape[2] == images.pixels.shape[3]


def warn_of_views(views: torch.nn.Module, images: Images | ImageFiles) -> None:
    """Warns if the views of coloured images change or remove what captions may name."""
    recipes = [each for each in getattr(views, "recipes", []) if images.channels == 3]
    if any(each.greyscale or each.jitter * each.strength * each.hue or each.crop_scale[0] < 0.2 for each in recipes):
        log.warning("these views change colours or cut objects out, which captions may name: views=captions keeps them")


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
    """The configuration as resolved plain containers, without what does not shape the run."""
    values = cast(dict[str, object], OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    return {key: value for key, value in values.items() if key not in NOT_OF_A_RUN}
