"""contrast-pretrain: train an encoder on images."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from contrast import run as entry
from contrast.cli.belongs import refuse_other
from contrast.data.images.image_set import Splits
from contrast.errors import InputError
from contrast.run.quiet import quiet
from contrast.training.pretrain_images import pretrain_images

# what a checkpoint restores, so that a resumed run cannot change it
RESTORED = ("encoder", "projector", "predictor", "key", "negatives", "head", "same_label", "optimizer")


def pretrain(cfg: DictConfig) -> float | None:
    """Trains what `cfg` describes in Hydra's output folder; returns the metric `cfg.metric`, for sweeps.

    `cfg.resume` names a run folder, or a checkpoint in one, to continue.
    """
    quiet()
    splits = instantiate(cfg.data)
    if not isinstance(splits, Splits):
        raise InputError(
            f"{splits.name} is text, and contrast-pretrain trains on images: contrast-words trains on text"
        )
    return pretrain_images(cfg, splits, Path(HydraConfig.get().runtime.output_dir))


def main() -> None:
    refuse_other("contrast-pretrain")
    entry.run(pretrain, "pretrain", restored=RESTORED)
