"""contrast-words: train word vectors or a language model on text."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from contrast.data.text.corpus import Corpus
from contrast.errors import InputError
from contrast.training.pretrain_text import pretrain_text
from contrast.training.trainer import check_settings


def check(cfg: DictConfig) -> None:
    """Raises InputError for settings that cannot work, whatever the text is."""
    ranks = check_settings(cfg).world_size
    if ranks > 1 and cfg.trainer.strategy not in ("auto", "ddp"):
        raise InputError(f"trainer.strategy={cfg.trainer.strategy}: models of text on several devices need ddp")


def words(cfg: DictConfig) -> float | None:
    """Trains what `cfg` describes in Hydra's output folder; returns the metric `cfg.metric`, for sweeps.

    `cfg.resume` names a run folder, or a checkpoint in one, to continue.
    """
    corpus = instantiate(cfg.data)
    if not isinstance(corpus, Corpus):
        raise InputError(f"{corpus.name} is a set of images, and contrast-words trains on text: contrast-pretrain")
    return pretrain_text(cfg, corpus, Path(HydraConfig.get().runtime.output_dir))
