"""contrast-words: train word vectors or a language model on text."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from contrast import run as entry
from contrast.cli.belongs import refuse_other
from contrast.data.text.corpus import Corpus
from contrast.errors import InputError
from contrast.run.quiet import quiet
from contrast.training.pretrain_text import pretrain_text

# what a checkpoint restores, so that a resumed run cannot change it
RESTORED = ("encoder", "negatives", "head", "optimizer")


def words(cfg: DictConfig) -> float | None:
    """Trains what `cfg` describes in Hydra's output folder; returns the metric `cfg.metric`, for sweeps.

    `cfg.resume` names a run folder, or a checkpoint in one, to continue.
    """
    quiet()
    corpus = instantiate(cfg.data)
    if not isinstance(corpus, Corpus):
        raise InputError(f"{corpus.name} is a set of images, and contrast-words trains on text: contrast-pretrain")
    return pretrain_text(cfg, corpus, Path(HydraConfig.get().runtime.output_dir))


def main() -> None:
    refuse_other("contrast-words")
    entry.run(words, "words", restored=RESTORED)
