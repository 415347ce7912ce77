"""`resume=RUN`: the run's own configuration, with the command line's values on top, in the run's own folder."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from contrast.errors import InputError
from contrast.run.compose import config_groups
from contrast.run.folder import CONFIG, is_first_rank, read_config, run_config

RESUMED = "resumed"  # Hydra's name for the configuration of a resumed run


def requested_run(overrides: Sequence[Override], loader: ConfigLoader) -> Path | None:
    """The folder of the run that `resume=` names on the command line.

    Raises:
        InputError: no such run, or a group next to it: a group brings a whole file, and nobody knows which of its
            values were overridden when the run began.
    """
    target = next((each for each in reversed(overrides) if each.key_or_group == "resume"), None)
    if target is None or target.value() is None:
        return None
    if target.is_sweep_override():
        raise InputError(f"{target.input_line}: resume= continues one run at a time")
    groups = set(config_groups(loader))
    for override in overrides:
        if override.key_or_group in groups and not isinstance(override.value(), dict):
            raise InputError(
                f"{override.input_line} cannot be combined with resume=: a resumed run keeps its groups; "
                "change single values, or start a new run"
            )
    return run_of(str(target.value()))


def run_of(target: str | Path) -> Path:
    """The run folder that `target` is, or that holds the checkpoint `target`.

    Raises:
        InputError: there is no such file or folder, no run around it, or nothing in it to continue from.
    """
    path = Path(target).expanduser().absolute()
    if not path.exists():
        raise InputError(f"resume={target}: there is no such run folder or checkpoint")
    run = path if path.is_dir() else next((up for up in path.parents if (up / CONFIG).is_file()), path)
    if not (run / CONFIG).is_file():
        raise InputError(f"resume={target}: no run folder, for it has no {CONFIG}")
    if run == path and not (run / "checkpoints" / "last.ckpt").is_file():
        raise InputError(f"resume={target}: nothing to continue from, for it has no checkpoints/last.ckpt")
    return run


def store_config(run: Path) -> str:
    """Makes the run's configuration a primary one of Hydra's, under the returned name."""
    saved = read_config(run)
    if "resume" not in saved:
        raise InputError(f"{run} holds no run that this command can continue: see its {CONFIG}")
    ConfigStore.instance().store(name=RESUMED, node={"defaults": ["_self_", "runs"], **saved})
    return RESUMED


def check_differences(run: Path, cfg: DictConfig, restored: Sequence[str]) -> None:
    """Prints what differs from the configuration that the run began with.

    Raises:
        InputError: a difference below one of the keys `restored`, which the checkpoint brings back.
    """
    lines = differences(read_config(run), run_config(cfg)) if is_first_rank() else []
    for line in lines:
        if re.split(r"[.:]", line)[0] in restored:
            raise InputError(f"{line}: a run keeps the value that it began with; start a new one")
    for line in lines:
        print(f"other than when the run began: {line}")


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
