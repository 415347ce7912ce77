"""contrast-pretrain: train an encoder on images."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from contrast.cli.data import splits_of
from contrast.errors import InputError
from contrast.training.pretrain_images import pretrain_images
from contrast.training.trainer import check_settings


def check(cfg: DictConfig) -> None:
    """Raises InputError for settings that cannot work, whatever the data are."""
    ranks = check_settings(cfg).world_size
    if cfg.batch_size % ranks:
        raise InputError(f"batch_size={cfg.batch_size} does not divide equally among {ranks} devices")


def pretrain(cfg: DictConfig) -> float | None:
    """Trains what `cfg` describes in Hydra's output folder; returns the metric `cfg.metric`, for sweeps.

    `cfg.resume` names a run folder, or a checkpoint in one, to continue.
    """
    return pretrain_images(cfg, splits_of(cfg.data, None, cfg.resume), Path(HydraConfig.get().runtime.output_dir))
