"""Hydra: composing the configuration of a new or a resumed run to check it, and then calling Hydra to run a job.

A configuration may compute values: `${linear_lr:0.3,${batch_size}}`, `${sqrt_lr:...}`, `${sweep_digest:}`. The
resolvers are registered on import, so that a worker process of any launcher knows them as soon as it unpickles its job.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from contrast.errors import InputError
from contrast.optim.schedule import linear_scaled, sqrt_scaled
from contrast.run.errors import configuration_error
from contrast.run.folder import CONFIG, has_checkpoint, is_first_rank, quoted, read_config, run_config, without_hydra

Task = Callable[[DictConfig], float | None]
RESUMED = "resumed"  # Hydra's name for the configuration of a resumed run


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
        raise InputError(f"--config-dir {config_dir}: no such folder")
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
    """Resolves a job's configuration, so that its task gets the values of config.yaml; returns the job's overrides."""
    OmegaConf.resolve(cfg)
    return [str(item) for item in HydraConfig.get().overrides.task]


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
        InputError: no such file or folder, no run around it, or no checkpoint in it to continue from.
    """
    path = Path(target).expanduser().absolute()
    if not path.exists():
        raise InputError(f"resume={target}: no such run folder or checkpoint")
    run = path if path.is_dir() else next((up for up in path.parents if (up / CONFIG).is_file()), path)
    if not (run / CONFIG).is_file():
        raise InputError(f"resume={target}: no run folder, for it has no {CONFIG}")
    if run == path and not has_checkpoint(run):
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


def differences(before: Mapping[str, object], after: Mapping[str, object], prefix: str = "") -> list[str]:
    """One line for each value that differs, `head.temperature: 0.1 -> 0.05`."""
    lines = []
    for key in [*before, *(key for key in after if key not in before)]:
        old, new = before.get(key, "(absent)"), after.get(key, "(absent)")
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old} -> {new}")
    return lines


def sweep_digest(*, _root_: DictConfig) -> str:
    """Ten hexadecimal digits that are the same for the same overrides of the same configuration.

    What belongs to Hydra does not count, so that a sweep begun with one launcher is continued with another.
    """
    sweep = {
        "config": OmegaConf.to_container(without_hydra(_root_), resolve=False),
        "name": _root_.hydra.job.config_name,
        "overrides": [item for item in _root_.hydra.overrides.task if not item.startswith("launcher=")],
        "params": OmegaConf.to_container(OmegaConf.create({"params": _root_.hydra.sweeper.get("params")})),
    }
    return hashlib.sha256(json.dumps(sweep, sort_keys=True, default=str).encode()).hexdigest()[:10]


OmegaConf.register_new_resolver("linear_lr", linear_scaled, replace=True)
OmegaConf.register_new_resolver("sqrt_lr", sqrt_scaled, replace=True)
OmegaConf.register_new_resolver("sweep_digest", sweep_digest, replace=True)
