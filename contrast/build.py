"""From a resolved configuration to the model, for a new run and for an old checkpoint alike."""

from collections.abc import Iterable
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from contrast.module import Contrastive, Normalize


def build(cfg: DictConfig, channels: int, size: int, mean: Iterable[float], std: Iterable[float]) -> Contrastive:
    """The model that `cfg` describes for images of `channels` and `size` pixels with these statistics."""
    encoder = instantiate(cfg.encoder, in_channels=channels, image_size=size)
    views = instantiate(cfg.views, **({} if cfg.views.get("size") else {"size": size}))
    facts = {"channels": channels, "size": size}
    return Contrastive(
        normalize=Normalize(mean, std),
        views=views,
        encoder=encoder,
        projector=instantiate(cfg.projector, in_features=encoder.num_features),
        negatives=instantiate(cfg.negatives),
        head=instantiate(cfg.head),
        optimizer=instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.scheduler),
        seed=cfg.seed,
        together=cfg.views_together,
        config={**plain(cfg), "images": facts},
    )


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as resolved plain containers."""
    container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
