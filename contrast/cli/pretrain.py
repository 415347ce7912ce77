"""contrast-pretrain: train an encoder on images, or a model of text."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from contrast import run as entry
from contrast.data.text.corpus import Corpus
from contrast.errors import InputError
from contrast.run.quiet import quiet

# what a checkpoint restores, so that a resumed run cannot change it
RESTORED = ("encoder", "projector", "predictor", "key", "negatives", "head", "same_label", "optimizer")


def pretrain(cfg: DictConfig) -> float | None:
    """Train what `cfg` describes in Hydra's output folder; returns the figure `cfg.metric`, for sweeps.

    `cfg.resume` names a run folder, or a checkpoint in one, to continue.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    quiet()
    data: Any = instantiate(cfg.data)
    # each imported where it is wanted: a run on text does without what images need, and without its memory
    if isinstance(data, Corpus):
        from contrast.training.pretrain_text import pretrain_text

        return pretrain_text(cfg, data, run_dir)
    if cfg.model is not None:
        raise InputError(f"{data.name} is a set of images, and the model is one of text: data=corpus, data=docstrings")
    from contrast.training.pretrain_images import pretrain_images

    return pretrain_images(cfg, data, run_dir)


def main() -> None:
    entry.run(pretrain, "pretrain", restored=RESTORED)
