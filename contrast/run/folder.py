"""The folder of a run: claimed by one run alone, and holding the configuration that made it."""

import itertools
import os
import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from contrast.atomic import replacing
from contrast.errors import InputError
from contrast.old_names import current

CONFIG, OVERRIDES, METRICS, ERROR = "config.yaml", "overrides.yaml", "metrics.json", "error.txt"


def conf_folder() -> Path:
    """`conf/` inside the package, as a wheel has it, or next to it, as a checkout has it."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if folder.is_dir():
            return folder
    raise InputError(f"no folder conf/ in {package} or next to it: the installation is not complete")


def claim(folder: Path) -> Path:
    """Claims `folder` or, if another run has it, `folder_2`, `folder_3`, ..., by creating its config.yaml.

    Creating a file exclusively is atomic: of two runs that start in the same second, one gets the next name.
    """
    for candidate in itertools.chain([folder], (folder.with_name(f"{folder.name}_{i}") for i in itertools.count(2))):
        try:
            candidate.mkdir(parents=True, exist_ok=True)
            (candidate / CONFIG).open("x").close()
            return candidate
        except OSError as error:
            if not isinstance(error, FileExistsError) or not candidate.is_dir():
                raise InputError(f"{candidate} cannot be a run folder: {error.strerror}") from error
    raise AssertionError("unreachable: the candidates never end")


def write_config(folder: Path, config: dict[str, Any], overrides: list[str]) -> None:
    """config.yaml: all that shapes the run, in plain values; overrides.yaml: the command line's part of it."""
    for name, content in ((CONFIG, config), (OVERRIDES, overrides)):
        with replacing(folder / name) as file:
            file.write_text(OmegaConf.to_yaml(OmegaConf.create(content)), encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of the run in `folder`, under today's names."""
    try:
        saved = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
    except yaml.YAMLError as error:
        raise InputError(f"{folder / CONFIG} is damaged: {error}") from error
    return current({str(key): value for key, value in saved.items()} if isinstance(saved, dict) else {})


def read_overrides(folder: Path) -> list[str]:
    path = folder / OVERRIDES
    return [str(item) for item in OmegaConf.load(path)] if path.exists() else []


def discard(folder: Path) -> None:
    """Removes the folder of a run that never began, which holds nothing but its configuration."""
    if {path.name for path in folder.iterdir()} <= {CONFIG, OVERRIDES}:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def run_config(cfg: DictConfig) -> dict[str, Any]:
    """The configuration of a run in plain values, without Hydra's part and without what `resume` says."""
    plain = OmegaConf.to_container(without_hydra(cfg), resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): None if key == "resume" else value for key, value in plain.items()}


def without_hydra(cfg: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def is_first_rank() -> bool:
    """Whether this process is the one that writes, the first rank of a distributed run or the only process."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def quoted(text: str | Path) -> str:
    """A text as a value on Hydra's command line, whatever its characters."""
    return "'" + re.sub(r"\\*(?='|$)", lambda slashes: slashes[0] * 2, str(text)).replace("'", "\\'") + "'"
