"""Hydra: composing a configuration to check it before anything has begun, and then calling Hydra to run a job."""

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from contrast.errors import InputError
from contrast.run import resolvers as resolvers  # registers them
from contrast.run.errors import configuration_error
from contrast.run.folder import quoted, run_config, without_hydra

Task = Callable[[DictConfig], float | None]


@contextmanager
def config_loader(conf: Path) -> Iterator[ConfigLoader]:
    """Hydra's loader of the files in `conf`; in its block, what is wrong with a configuration is an InputError."""
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        try:
            yield loader
        except Exception as error:
            line = configuration_error(error, lambda: config_groups(loader))
            if line is None:
                raise
            raise InputError(line) from error


def load_config(loader: ConfigLoader, name: str, overrides: list[str], sweeps: bool = False) -> DictConfig:
    """The configuration with Hydra's own part, of a single run or of all jobs of a sweep before they differ.

    Groups without an option do not stop it: `check_values` names them together with the missing values.
    """
    cfg = loader.load_configuration(name, overrides, RunMode.MULTIRUN, validate_sweep_overrides=sweeps)
    HydraConfig.instance().set_config(cfg)  # for ${hydra:...}
    return cfg


def search_path(config_dir: str | None) -> list[str]:
    """The override that adds the user's own folder of configurations to those that Hydra searches."""
    if config_dir is None:
        return []
    if not Path(config_dir).is_dir():
        raise InputError(f"--config-dir {config_dir}: there is no such folder")
    return [f"hydra.searchpath=[{quoted(f'file://{Path(config_dir).absolute()}')}]"]


def parse_overrides(overrides: list[str], loader: ConfigLoader) -> list[Override]:
    return OverridesParser.create(config_loader=loader).parse_overrides(overrides)


def config_groups(loader: ConfigLoader, parent: str = "") -> list[str]:
    """All groups below `parent`: "head", "head/temperature", ..."""
    groups = [f"{parent}/{name}".lstrip("/") for name in loader.list_groups(parent)]
    return groups + [below for group in groups for below in config_groups(loader, group)]


def check_values(cfg: DictConfig, folder: Path, swept: Collection[str] = ()) -> None:
    """Raises InputError for a value that is `???` or cannot be computed; swept keys get their values in each job."""
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.runtime.output_dir = str(folder)
    choices = OmegaConf.create(OmegaConf.to_container(cfg.hydra.runtime.choices))
    missing = sorted(OmegaConf.missing_keys(without_hydra(cfg)) | OmegaConf.missing_keys(choices))
    needed = [key for key in missing if not any(f"{key}.".startswith(f"{each}.") for each in swept)]
    if needed:
        raise InputError(f"{' and '.join(needed)} must be given: {needed[0]}=...")
    if not missing:
        run_config(cfg)


def call_hydra(job: Task, arguments: list[str]) -> None:
    """Hydra's main function with these arguments, which sys.argv holds meanwhile: Lightning repeats it on each rank."""
    argv = sys.argv
    sys.argv = [argv[0], *arguments]
    try:
        hydra.main(config_path=None, version_base="1.3")(job)()
    finally:
        sys.argv = argv


def resolve(cfg: DictConfig) -> list[str]:
    """Resolves a job's configuration, so that its task sees what config.yaml says; returns the job's overrides."""
    OmegaConf.resolve(cfg)
    return [str(item) for item in HydraConfig.get().overrides.task]
