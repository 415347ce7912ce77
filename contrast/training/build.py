"""From a resolved configuration to the model, for a new run and for an old checkpoint alike."""

from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from contrast.encoders.contract import check_view_sizes
from contrast.encoders.normalize import Normalize
from contrast.errors import InputError
from contrast.facts import CAPTIONS, complete
from contrast.heads import NCE
from contrast.module import Contrastive
from contrast.negatives import Tree


def build(cfg: DictConfig, images: Any, tokenizer: Any = None) -> Contrastive:
    """The model that `cfg` describes for `images`: their channels, size, statistics, number, labels and captions.

    A part that is a partial (`_partial_: true`) is called with those of these facts that its signature names:

    dim          D, of the projections
    size         number of different ids: of classes with same_label=positive, else of images
    counts       [size] int64, how often each id occurs
    normalize, encoder, projector   the trained modules, for a key encoder that copies them
    in_features  D, of a predictor
    vocabulary, length              of the captions: number of token ids, tokens of a caption
    """
    encoder = instantiate(cfg.encoder, in_channels=images.channels, image_size=images.size)
    views = instantiate(cfg.views, **({} if cfg.views.get("size") else {"size": images.size}))
    check_view_sizes(encoder, images.channels, images.size, getattr(views, "sizes", []))
    projector = instantiate(cfg.projector, in_features=encoder.num_features)
    normalize = Normalize(*images.statistics())
    counts = id_counts(images, cfg.same_label)
    caption_facts = text_facts(images.text, tokenizer)
    image_facts = {"channels": images.channels, "size": images.size, "ids": len(counts)}
    check_labels(images, cfg.same_label)
    facts = {
        "dim": projector.num_features,
        "in_features": projector.num_features,
        "size": len(counts),
        "counts": counts,
        "normalize": normalize,
        "encoder": encoder,
        "projector": projector,
        **{name: caption_facts[name] for name in CAPTIONS if caption_facts},
    }
    negatives = complete(instantiate(cfg.negatives), facts)
    unlabelled = int((images.labels < 0).sum())
    name, by_label = type(negatives).__name__, cfg.same_label == "positive"
    if negatives.needs_labels and not by_label:
        raise InputError(f"{name} holds classes: it needs same_label=positive, not {cfg.same_label}")
    head = complete(instantiate(cfg.head), facts)
    if isinstance(negatives, Tree) and not isinstance(head, NCE):
        raise InputError(f"the nodes of a Tree are all positive: it needs head=nce, not {type(head).__name__}")
    if cfg.same_label == "ignored" and not negatives.supports_groups:
        raise InputError(f"{name} does not leave out images with a query's label: same_label=negative or positive")
    if negatives.ids_are_rows and by_label and unlabelled:
        raise InputError(f"{name} has a row for each class, but {unlabelled} of {len(images)} images have no label")
    return Contrastive(
        normalize=normalize,
        views=views,
        encoder=encoder,
        projector=projector,
        key=complete(instantiate(cfg.key), facts),
        predictor=complete(instantiate(cfg.predictor), facts),
        negatives=negatives,
        head=head,
        optimizer=instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.scheduler),
        same_label=cfg.same_label,
        seed=cfg.seed,
        one_forward_pass=cfg.one_forward_pass,
        micro_batch=cfg.micro_batch,
        config={**plain(cfg), "images": image_facts, "text": caption_facts},
    )


def check_labels(images: Any, same_label: str) -> None:
    """InputError where labels are asked for and there are none."""
    if same_label != "negative" and not bool((images.labels >= 0).any()):
        raise InputError(f"same_label={same_label} needs labels, and none of the {len(images)} images has one")


def id_counts(images: Any, same_label: str) -> torch.Tensor:
    """How often each id occurs in an epoch, [number of ids] int64: a label with same_label=positive, else a row."""
    if same_label != "positive":
        return torch.ones(len(images), dtype=torch.int64)
    return torch.bincount(images.labels[images.labels >= 0], minlength=len(images.classes))


def text_facts(text: torch.Tensor | None, tokenizer: Any) -> dict[str, Any]:
    """What a text encoder has to know of the captions [N, L], and their tokenizer; nothing without captions."""
    if text is None or tokenizer is None:
        return {}
    return {"vocabulary": tokenizer.size, "length": text.shape[1], "tokenizer": tokenizer.facts()}


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as resolved plain containers."""
    container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
