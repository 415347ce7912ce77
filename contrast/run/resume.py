"""`resume=RUN`: the run's own configuration, with the command line's values on top, in the run's own folder."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from contrast.errors import InputError
from contrast.run.jobs import CONFIG

RESUMED = "resumed"  # Hydra's name for the configuration of a run that continues


def run_of(target: str | Path) -> Path:
    """The run folder that `target` is, or that holds the checkpoint `target`.

    Raises:
        InputError: there is no such file or folder, no run around it, or nothing in it to continue from.
    """
    path = Path(target).expanduser().absolute()
    if not path.exists():
        raise InputError(f"resume={target}: there is no such run folder or checkpoint")
    run = path if path.is_dir() else next((up for up in path.parents if (up / CONFIG).is_file()), None)
    if run is None or not (run / CONFIG).is_file():
        raise InputError(f"resume={target}: no run folder, for it has no {CONFIG}")
    if run == path and not (run / "checkpoints" / "last.ckpt").is_file():
        raise InputError(f"resume={target}: nothing to continue from, for it has no checkpoints/last.ckpt")
    return run


def config_of(run: Path) -> DictConfig:
    try:
        saved = OmegaConf.load(run / CONFIG)
    except yaml.YAMLError as error:
        raise InputError(f"{run / CONFIG} is damaged: {error}") from error
    if not isinstance(saved, DictConfig) or "resume" not in saved:
        raise InputError(f"{run} holds no run that this command can continue: see its {CONFIG}")
    return saved


def store_config(saved: DictConfig) -> str:
    """Makes the saved configuration a primary one of Hydra's, under the returned name."""
    node = OmegaConf.create({"defaults": ["_self_", "runs"]})
    ConfigStore.instance().store(name=RESUMED, node=OmegaConf.merge(node, saved))
    return RESUMED


def refuse_groups(overrides: Iterable[Override], groups: Iterable[str]) -> None:
    """A group brings a whole file, of which some values were overridden when the run began: no way to tell which."""
    names = set(groups)
    for override in overrides:
        if override.key_or_group in names and not isinstance(override.value(), dict):
            raise InputError(
                f"{override.input_line} cannot be combined with resume=: a run that continues keeps its groups; "
                "change single values, or start a new run"
            )


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line for each value that differs, `head.temperature: 0.1 -> 0.05`."""
    lines = []
    for key in [*before, *(key for key in after if key not in before)]:
        old, new = before.get(key, "(absent)"), after.get(key, "(absent)")
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old} -> {new}")
    return lines
