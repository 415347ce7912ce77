"""Composing a configuration just to look at it, so that its mistakes show before anything has begun."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from contrast.errors import InputError
from contrast.run.folder import settled, without_hydra
from contrast.run.messages import of_configuration


@contextmanager
def opened(conf: Path, config_dir: str | None, name: str) -> Iterator[Hydra]:
    """Hydra with the configurations in `conf` and, before them, in the user's own `config_dir`."""
    search_path = create_config_search_path(str(conf))
    if config_dir is not None:
        own = Path(config_dir).absolute()
        if not own.is_dir():
            raise InputError(f"--config-dir {config_dir}: there is no such folder")
        search_path.prepend(provider="command-line", path=f"file://{own}", anchor=SearchPathQuery(provider="schema"))
    app = Hydra.create_main_hydra2(task_name=name, config_search_path=search_path)
    try:
        yield app
    finally:
        GlobalHydra.instance().clear()


@contextmanager
def at_the_door(app: Hydra) -> Iterator[None]:
    """Turns what is wrong with a configuration into an InputError of one line."""
    try:
        yield
    except Exception as error:
        line = of_configuration(error, app.list_all_config_groups)
        if line is None:
            raise
        raise InputError(line) from error


def composed(app: Hydra, name: str, overrides: list[str]) -> DictConfig:
    """The configuration with Hydra's own part, of a single run or of all jobs of a sweep before they differ."""
    cfg = app.compose_config(name, overrides, RunMode.MULTIRUN, validate_sweep_overrides=False)
    HydraConfig.instance().set_config(cfg)  # for ${hydra:...}
    return cfg


def parsed(overrides: list[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(overrides)


def check_values(cfg: DictConfig, folder: Path, swept: Collection[str] = ()) -> None:
    """Raises InputError for a value that is `???` or cannot be computed; a swept one comes with its job."""
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.runtime.output_dir = str(folder)
    missing = sorted(OmegaConf.missing_keys(without_hydra(cfg)))
    groups = OmegaConf.to_container(cfg.hydra.runtime.choices)
    assert isinstance(groups, dict)
    missing += [str(group) for group, option in groups.items() if option == "???"]
    needed = [key for key in missing if not any(f"{key}.".startswith(f"{each}.") for each in swept)]
    if needed:
        raise InputError(f"{' and '.join(needed)} must be given: {needed[0]}=...")
    if not missing:
        settled(cfg)
