"""The folder of a run: claimed by one run alone, and holding its configuration and its metrics."""

import itertools
import json
import os
import re
from pathlib import Path
from typing import TypeAlias

import yaml
from omegaconf import DictConfig, OmegaConf

from contrast.atomic import replacing
from contrast.errors import InputError
from contrast.old_names import current

CONFIG, OVERRIDES, METRICS, ERROR = "config.yaml", "overrides.yaml", "metrics.json", "error.txt"
ASIDE = ".aside-"  # in the name of a folder that made room for another run

Config: TypeAlias = dict[str, object]  # plain values, nested


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


def write_config(folder: Path, config: Config, overrides: list[str]) -> None:
    """config.yaml: all that shapes the run, in plain values; overrides.yaml: the command line's part of it."""
    for name, content in ((CONFIG, config), (OVERRIDES, overrides)):
        with replacing(folder / name) as file:
            file.write_text(OmegaConf.to_yaml(OmegaConf.create(content)), encoding="utf-8")


def read_config(folder: Path) -> Config:
    """The configuration of the run in `folder`, under today's names."""
    try:
        saved = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
    except yaml.YAMLError as error:
        raise InputError(f"{folder / CONFIG} is damaged: {error}") from error
    return current({str(key): value for key, value in saved.items()} if isinstance(saved, dict) else {})


def read_overrides(folder: Path) -> list[str]:
    path = folder / OVERRIDES
    return [str(item) for item in OmegaConf.load(path)] if path.exists() else []


def is_complete(folder: Path, config: Config) -> bool:
    """Whether the run in `folder` reached its metrics, and with this very configuration."""
    return (folder / METRICS).is_file() and not (folder / ERROR).exists() and has_config(folder, config)


def has_config(folder: Path, config: Config) -> bool:
    """Whether the run in `folder` has this configuration, as it reads after a round trip through a file."""
    if not (folder / CONFIG).is_file():
        return False
    written = OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(config)))
    return read_config(folder) == OmegaConf.to_container(written)


def has_checkpoint(folder: Path) -> bool:
    """Whether a run can be continued from its folder."""
    return (folder / "checkpoints" / "last.ckpt").is_file()


def prepare_folder(folder: Path, config: Config) -> bool:
    """Makes `folder` ready for a job; True if it holds the beginning of this very job, to be continued.

    Only the record of how the job ended is deleted. A folder of another job is renamed.
    """
    if has_config(folder, config) and has_checkpoint(folder):
        for name in (METRICS, ERROR):
            (folder / name).unlink(missing_ok=True)
        return True
    if folder.is_dir() and any(folder.iterdir()):
        names = (folder.with_name(f"{folder.name}{ASIDE}{number}") for number in itertools.count(1))
        os.rename(folder, next(name for name in names if not name.exists()))
    folder.mkdir(parents=True, exist_ok=True)
    return False


def metric_of(metrics: dict[str, float], name: str) -> float:
    """The metric called `name`; InputError with the names of all metrics if it is none of them."""
    if name not in metrics:
        raise InputError(f"metric={name} is none of the metrics: {', '.join(sorted(metrics))}")
    return metrics[name]


def read_metrics(folder: Path) -> dict[str, float]:
    """The numbers in metrics.json; none if there is no such file."""
    path = folder / METRICS
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {key: value for key, value in metrics.items() if isinstance(value, (int, float))}


def discard(folder: Path) -> None:
    """Removes the folder of a run that never began, which holds nothing but its configuration."""
    if {path.name for path in folder.iterdir()} <= {CONFIG, OVERRIDES}:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def run_config(cfg: DictConfig) -> Config:
    """The configuration of a run in plain values, without Hydra's part and without a value of `resume`."""
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
