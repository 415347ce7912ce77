"""The folder of a run: claimed by one run alone, and holding the configuration that made it."""

import os
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from contrast.atomic import replacing
from contrast.errors import InputError
from contrast.run.jobs import CONFIG, OVERRIDES


def conf_folder() -> Path:
    """`conf/` inside the package, as a wheel has it, or beside it, as a checkout has it."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if folder.is_dir():
            return folder
    raise InputError(f"no folder conf/ in {package} or beside it: the installation is not complete")


def claim(folder: Path) -> Path:
    """A folder that no other run has, `folder` or `folder_2`, `folder_3`, ...: its config.yaml is created here.

    Creating a file exclusively is atomic: of two runs that start in the same second, one gets the next name.
    """
    number = 1
    while True:
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}_{number}")
        try:
            candidate.mkdir(parents=True, exist_ok=True)
            (candidate / CONFIG).open("x").close()
        except (FileExistsError, NotADirectoryError) as error:
            if not candidate.is_dir():
                raise InputError(f"{candidate} cannot be a run folder: {error.strerror}") from error
            number += 1
        except OSError as error:
            raise InputError(f"cannot write to {candidate}: {error.strerror}") from error
        else:
            return candidate


def write_config(folder: Path, config: dict[str, Any], overrides: list[str]) -> None:
    """config.yaml: all that shapes the run, in plain values; overrides.yaml: what the command line had to say."""
    for name, content in ((CONFIG, config), (OVERRIDES, overrides)):
        with replacing(folder / name) as file:
            file.write_text(OmegaConf.to_yaml(OmegaConf.create(content)), encoding="utf-8")


def discard(folder: Path) -> None:
    """Removes the folder of a run that never began: it holds nothing but its configuration."""
    if {path.name for path in folder.iterdir()} <= {CONFIG, OVERRIDES}:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def read_overrides(folder: Path) -> list[str]:
    path = folder / OVERRIDES
    return [str(item) for item in OmegaConf.load(path)] if path.exists() else []


def settled(cfg: DictConfig) -> dict[str, Any]:
    """What a run is: its configuration in plain values. Whether it is being resumed is no part of that."""
    plain = OmegaConf.to_container(without_hydra(cfg), resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    if "resume" in plain:
        plain["resume"] = None
    return {str(key): value for key, value in plain.items()}


def without_hydra(cfg: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def is_first_rank() -> bool:
    """Whether this process writes: of the processes of one distributed run only the first does."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def quoted(path: Path) -> str:
    """A path as a value on Hydra's command line, whatever its characters."""
    return "'" + re.sub(r"\\*(?='|$)", lambda found: found[0] * 2, str(path)).replace("'", "\\'") + "'"
