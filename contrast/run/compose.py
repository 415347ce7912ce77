"""Hydra: composing the configuration of a new or a resumed run to check it, and then calling Hydra to run a job.

`contrast.run.resolvers` has the values that a configuration may compute. They are registered on import, so that a
worker process of any launcher knows them as soon as it unpickles its job.
"""

import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import glob, has_magic
from pathlib import Path
from typing import cast

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from contrast.config.trust import Trust, from_file, shown
from contrast.errors import InputError
from contrast.run import folder, resolvers  # noqa: F401  # registers them
from contrast.run.console import logged_warnings
from contrast.run.errors import configuration_error

sys.path.append(str(Path(__file__).parent / "plugins"))  # Hydra takes sweepers from packages named hydra_plugins alone

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
    return [f"hydra.searchpath=[{folder.quoted(f'file://{Path(config_dir).absolute()}')}]"]


def quoted_range(word: str) -> str:
    """A word such as KEY=shards/{000..099}.tar with quotes around its value: Hydra takes braces for a mapping."""
    key, _, value = word.partition("=")
    return f"{key}={folder.quoted(value)}" if re.match(r"[^'\"\[{]*\{\d+\.\.\d+\}", value) else word


def in_home(word: str) -> str:
    """A word such as hydra.run.dir=~/runs with the home folder: Hydra would make a folder with the name ~."""
    key, _, value = word.partition("=")
    is_folder = key in ("hydra.run.dir", "hydra.sweep.dir") and value.startswith("~/")
    return f"{key}={Path.home()}{value[1:]}" if is_folder else word


def files_of_pattern(word: str) -> str:
    """A word such as checkpoint=RUN/checkpoints/*.ckpt with the files in place of the pattern, by name."""
    key, _, pattern = word.partition("=")
    if key != "checkpoint" or not has_magic(pattern) or Path(pattern).exists():
        return word
    files = sorted(glob(str(Path(pattern).expanduser())))
    if not files:
        raise InputError(f"{word}: there is no such file")
    return f"{key}={','.join(map(folder.quoted, files))}"


def parse_overrides(overrides: list[str], loader: ConfigLoader) -> list[Override]:
    return OverridesParser.create(config_loader=loader).parse_overrides(overrides)


def config_groups(loader: ConfigLoader, parent: str = "") -> list[str]:
    """All groups below `parent`: "head", "head/temperature", ..."""
    groups = [f"{parent}/{name}".lstrip("/") for name in loader.list_groups(parent)]
    return groups + [below for group in groups for below in config_groups(loader, group)]


def check_values(
    cfg: DictConfig, run_dir: Path, verify: Callable[[DictConfig], None], swept: Collection[str] = ()
) -> None:
    """Raises InputError for a value that is `???` or cannot be computed, and as `verify` does.

    Swept keys get their values in each job.
    """
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.runtime.output_dir = str(run_dir)
    choices = OmegaConf.create(OmegaConf.to_container(cfg.hydra.runtime.choices))
    missing = sorted(OmegaConf.missing_keys(folder.without_hydra(cfg)) | OmegaConf.missing_keys(choices))
    needed = [key for key in missing if not any(f"{key}.".startswith(f"{each}.") for each in swept)]
    if needed:
        raise InputError(f"{' and '.join(needed)} must be given: {needed[0]}=...")
    if not missing:
        folder.run_config(cfg) if swept else verify(cfg)


def check_groups(cfg: DictConfig) -> None:
    """Raises InputError if an output layer and a group that it brings are both chosen."""
    choices = cfg.hydra.runtime.choices
    for group in ("head", "negatives"):
        if choices.get("output") is not None and choices.get(group) is not None:
            raise InputError(
                f"{group}={choices[group]} and output={choices['output']} both set {group}: an output layer brings its "
                "own, and ~output leaves negatives and head to you"
            )


def call_hydra(job: Task, arguments: list[str]) -> None:
    """Hydra's main function with these arguments, which sys.argv holds meanwhile: Lightning repeats it on each rank."""
    argv = sys.argv
    sys.argv = [argv[0], *arguments]
    try:
        with logged_warnings():
            hydra.main(config_path=None, version_base="1.3")(job)()
    finally:
        sys.argv = argv


def quietly(task: Task, cfg: DictConfig) -> float | None:
    """Calls the task, with the messages of libraries that would hide what it prints silenced."""
    from contrast.run.quiet import quiet  # with torch, which only a run needs

    quiet()
    return task(cfg)


def resolve(cfg: DictConfig) -> list[str]:
    """Resolves a job's configuration, so that its task gets the values of config.yaml; returns the job's overrides."""
    OmegaConf.resolve(cfg)
    folder.make_absolute(cfg)
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


def resumed_run(words: Sequence[str]) -> Path:
    """The folder of the run that the last of the `resume=` among the words of a command line names."""
    with config_loader(folder.conf_folder()) as loader:
        run = requested_run(parse_overrides(list(words), loader), loader)
    assert run is not None
    return run


def run_of(target: str | Path) -> Path:
    """The run folder that `target` is, or that holds the checkpoint `target`.

    Raises:
        InputError: no such file or folder, no run around it, or no checkpoint in it to continue from.
    """
    path = folder.absolute(Path(target).expanduser())
    if not path.exists():
        raise InputError(f"resume={target}: no such run folder or checkpoint")
    run = path if path.is_dir() else folder.run_around(path)
    if run is None or not (run / folder.CONFIG).is_file():
        raise InputError(f"resume={target}: no run folder, for it has no {folder.CONFIG}")
    if run == path and not folder.has_checkpoint(run):
        raise InputError(f"resume={target}: nothing to continue from, for it has no checkpoints/last.ckpt")
    from contrast.encoders.archive import check_archive  # with torch, which only a resumed run needs here

    check_archive(run / "checkpoints" / "last.ckpt" if run == path else path)
    return run


def store_config(run: Path, overrides: Sequence[Override] = (), folders: Sequence[str] = ()) -> str:
    """Makes the run's configuration a primary one of Hydra's, under the returned name.

    The run may be a stranger's, so what it may call is limited, unless `trust` is among the overrides.

    overrides  of the command line: what they set is the user's own
    folders    of configurations, from the command line: the targets that they name are the user's own, too

    Raises InputError for a configuration that calls more, for what would make the run write to another place (a link in
    the folder, or a store of MLflow that the folder names), and for a damaged file in the folder.
    """
    from contrast.run.metrics import FILE, read_rows  # with Lightning, which only a resumed run needs here

    saved = folder.read_config(run)
    if "resume" not in saved:
        raise InputError(f"{run} holds no run that this command can continue: see its {folder.CONFIG}")
    given = [override for override in overrides if override.key_or_group == "trust"]
    if given and given[-1].is_sweep_override():
        raise InputError(f"{given[-1].input_line}: a list is written trust=[a,b]")
    trust = cast(Trust, given[-1].value() if given else False)
    if trust is not True:
        if (path := irregular_file(run)) is not None:
            raise InputError(
                f"{path} is a link, or no regular file, through which the run would write: if you trust it, trust=true"
            )
        if (store := folder.foreign_store(run)) is not None:
            raise InputError(
                f"{run / folder.MLFLOW} says that the run is logged to {shown(store)}: if you trust it, give "
                "trust=true or set MLFLOW_TRACKING_URI"
            )
        files = [path.read_text(encoding="utf-8") for each in folders for path in sorted(Path(each).rglob("*.yaml"))]
        own = {name for text in files for name in re.findall(r"_target_: *([\w.]+)", text)}
        trust = own | ({trust} if isinstance(trust, str) else set(trust or ()))
    folder.check_files(run)
    if (run / FILE).exists():
        read_rows(run / FILE)  # raises InputError for a damaged one
    typed = [key for each in overrides for key in set_keys(each.key_or_group, each.value())]
    checked = from_file(saved, str(run / folder.CONFIG), trust, typed)
    node = {**checked, "trust": False, "defaults": ["_self_", "runs"]}
    ConfigStore.instance().store(name=RESUMED, node=node)
    return RESUMED


def irregular_file(run: Path) -> Path | None:
    """A link, a pipe or a device in a run folder, through which the run could write to another place; None without one.

    W&B makes links of its own within its folder, which lead to files of the run.
    """
    inside = run.resolve()
    for place, folders, files in os.walk(run):
        for path in (Path(place, name) for name in sorted(folders + files)):
            if path.is_symlink():
                leads_out = path.parent == run or inside not in path.resolve().parents
            else:
                leads_out = not (path.is_file() or path.is_dir())
            if leads_out:
                return path
    return None


def set_keys(key: str, value: object) -> Iterator[str]:
    """The keys that an override sets: those inside it if its value is a mapping, whose other keys stay as they are."""
    if not isinstance(value, Mapping):
        yield key
    for name, item in value.items() if isinstance(value, Mapping) else ():
        yield from set_keys(f"{key}.{name}", item)


def check_differences(run: Path, cfg: DictConfig, restored: Sequence[str]) -> bool:
    """Prints what differs from the configuration that the run began with; returns whether anything is left to do.

    Nothing is left of a complete run if nothing differs, unless `cfg.resume` names one of its earlier checkpoints.

    Raises:
        InputError: a difference below one of the keys `restored`, which the checkpoint brings back; or other data for
            a run that is complete and does not train longer.
    """
    before = folder.read_config(run)
    folder.make_absolute(before)  # that of an older version may not be
    ended = folder.is_complete(run, before) and folder.absolute(Path(cfg.resume).expanduser()) in (
        run,
        run / "checkpoints" / "last.ckpt",
    )
    lines = differences(before, folder.run_config(cfg))
    longer = any(line.startswith(("trainer.max_", "trainer.limit_train")) for line in lines)
    for line in lines:
        key = re.split(r"[.:]", line)[0]
        if key in restored:
            raise InputError(f"{line}: a run keeps the value that it began with; start a new one")
        if key == "data" and ended and not longer:
            raise InputError(
                f"{line}: {run} is complete, and its metrics are those of its own data; "
                f"contrast-evaluate checkpoint={run} data=... measures it on other data"
            )
    if not folder.is_first_rank():  # it finds the same, because nothing is written before all ranks have joined
        return bool(lines) or not ended
    for line in lines:
        print(f"other than when the run began: {line}")
    if ended and not lines:
        print(f"{run} is complete: nothing is left to do (trainer.max_epochs=... trains longer)")
    return bool(lines) or not ended


def begin(cfg: DictConfig, run_dir: Path) -> None:
    """Writes the configuration of this job, which a run calls as soon as it is under way; a resumed run adds to it."""
    kept = [] if cfg.get("resume") is None else folder.read_overrides(run_dir)
    new = [str(item) for item in HydraConfig.get().overrides.task if not str(item).startswith("resume=")]
    folder.write_config(run_dir, folder.run_config(cfg), kept + [item for item in new if item not in kept])


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
