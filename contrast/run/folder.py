"""The folder of a run: claimed by one run alone, and holding its configuration and its metrics."""

import itertools
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from contrast.atomic import replacing
from contrast.errors import InputError
from contrast.old_names import current
from contrast.run.lock import LOCK
from contrast.trust import PATHS, PATHS_OR_NAMES, needs_trust

CONFIG, OVERRIDES, METRICS, ERROR = "config.yaml", "overrides.yaml", "metrics.json", "error.txt"
PRUNED = "pruned_after_epochs"  # in the metrics of a job of a sweep that was ended early for being worse than others
STARTED = {CONFIG, OVERRIDES, LOCK, "environment.json", "views.png", "wandb", "wandb_id", "mlflow_id", "tensorboard"}
NOT_OF_A_RUN = ("trust", "columns", "report")  # keys of the configuration that do not shape what a run computes
# what sweeps optimise by default, and what without labels or captions
INSTEAD = {"linear_val_top1": "held_out_top1", "image_to_text_recall1": "recall1"}
ASIDE = ".aside-"  # in the name of a folder that made room for another run

Config: TypeAlias = dict[str, object]  # plain values, nested


def conf_folder() -> Path:
    """`conf/` inside the package, as a wheel has it, or next to it, as a checkout has it."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if folder.is_dir():
            return folder
    raise InputError(f"no folder conf/ in {package} or next to it: the installation is not complete")


def claim(folder: Path) -> tuple[Path, bool]:
    """Claims `folder` or, if another run has it, `folder_2`, `folder_3`, ..., by creating its config.yaml.

    Returns the folder, and whether it was not there before.

    Creating a file exclusively is atomic: of two runs that start in the same second, one gets the next name.
    """
    for candidate in itertools.chain([folder], (folder.with_name(f"{folder.name}_{i}") for i in itertools.count(2))):
        try:
            is_new = not candidate.exists()
            candidate.mkdir(parents=True, exist_ok=True)
            (candidate / CONFIG).open("x").close()
            return candidate, is_new
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
    """The configuration of the run in `folder`, under today's names.

    It is data to compare with: `compose.store_config` says what a stranger's may call.
    """
    saved = _read_yaml(folder / CONFIG)
    return current({str(key): value for key, value in saved.items()} if isinstance(saved, dict) else {})


def read_overrides(folder: Path) -> list[str]:
    saved = _read_yaml(folder / OVERRIDES) if (folder / OVERRIDES).exists() else []
    return [str(item) for item in saved] if isinstance(saved, list) else []


def _read_yaml(path: Path) -> object:
    """Plain containers, in which nothing is computed. InputError for what no run writes: aliases, which can stand for
    any amount of text, and tags."""
    try:
        text = path.read_text(encoding="utf-8")
        if "*" in text and any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise InputError(f"{path} is damaged: it has aliases in it")
        return OmegaConf.to_container(OmegaConf.create(text)) if text.strip() else {}
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from error


def is_complete(folder: Path, config: Config) -> bool:
    """Whether the run in `folder` reached its metrics, and with this very configuration."""
    return (folder / METRICS).is_file() and not (folder / ERROR).exists() and has_config(folder, config)


def has_config(folder: Path, config: Config) -> bool:
    """Whether the run in `folder` has this configuration, as it reads after a round trip through a file."""
    if not (folder / CONFIG).is_file():
        return False
    written = OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(config)))
    saved = read_config(folder)
    make_absolute(saved)
    return saved == OmegaConf.to_container(written)


def has_checkpoint(folder: Path) -> bool:
    """Whether a run can be continued from its folder."""
    return (folder / "checkpoints" / "last.ckpt").is_file()


def prepare_folder(folder: Path, config: Config) -> bool:
    """Makes `folder` ready for a job; True if it holds the beginning of this very job, to be continued.

    Only the record of how the job ended is deleted. What another job has left there is moved aside, but for the lock.
    """
    if has_config(folder, config) and has_checkpoint(folder):
        for name in (METRICS, ERROR):
            (folder / name).unlink(missing_ok=True)
        return True
    folder.mkdir(parents=True, exist_ok=True)
    if others := [path for path in sorted(folder.iterdir()) if path.name != LOCK]:
        names = (folder.with_name(f"{folder.name}{ASIDE}{number}") for number in itertools.count(1))
        aside = next(name for name in names if not name.exists())
        aside.mkdir()
        for path in others:
            path.rename(aside / path.name)
    return False


def metric_of(metrics: Mapping[str, float], name: str) -> float:
    """As `value_of`; InputError with the names of all metrics if it is none of them."""
    value = value_of(metrics, name)
    if value is None:
        raise InputError(f"metric={name} is none of the metrics: {', '.join(sorted(metrics))}")
    return value


def value_of(metrics: Mapping[str, float], name: str) -> float | None:
    """The metric called `name`, or what a run without labels or captions has in its place."""
    return metrics.get(name, metrics.get(INSTEAD.get(name, name)))


def read_metrics(folder: Path) -> dict[str, float]:
    """The numbers in metrics.json; none if there is no such file."""
    path = folder / METRICS
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {key: value for key, value in metrics.items() if isinstance(value, (int, float))}


def run_around(what: str | Path) -> Path | None:
    """The run folder that `what` is, or that holds the checkpoint `what`; None if there is none."""
    path = Path(what).expanduser().absolute()
    return next((folder for folder in (path, *path.parents) if (folder / CONFIG).is_file()), None)


def record(folder: Path | None) -> dict[str, Any]:
    """What the folder of a run says of it: its metrics, its command and the versions of packages; {} without one."""
    if folder is None:
        return {}
    file = folder / "environment.json"
    starts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else [{}]
    packages = starts[-1].get("packages", {}) | {"python": starts[-1].get("python", "unknown")}
    return {"metrics": read_metrics(folder), "overrides": read_overrides(folder), "packages": packages}


def title(config: Mapping[str, Any]) -> str:
    """What a run is, in a line: "simclr on digits, encoder conv_net"."""

    def called(node: Mapping[str, Any]) -> str:
        return str(node.get("name") or str(node.get("_target_", "")).rpartition(".")[2])

    data, encoder = config.get("data") or {}, config.get("encoder")
    place = Path(str(data.get("root") or data.get("file") or data.get("path") or "")).name
    # a name may repeat data and encoder: simclr-digits-small, simclr-FOLDER-small
    name = re.split(f"-(?:{re.escape(called(data))}|{re.escape(place)})-", str(config.get("name", "a run")))[0]
    words = [name, "on" if data else "", called(data), place if place != called(data) else ""]
    return " ".join(word for word in words if word) + (f", encoder {called(encoder)}" if encoder else "")


def title_of(folder: Path | None) -> str:
    """The title of the run in the folder; empty if there is none."""
    return "" if folder is None or not (folder / CONFIG).is_file() else title(read_config(folder))


def discard(folder: Path) -> None:
    """Removes the folder of a run that took no step: it holds what was written at the start and no more.

    The empty folders around it go too, below the one in which the command was called.
    """
    names = {path.name for path in folder.iterdir() if path.suffix != ".log"}
    if CONFIG in names and names <= STARTED:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for each in (folder, *folder.parents):
            if each != folder and (Path.cwd() not in each.parents or any(each.iterdir())):
                break
            each.rmdir()


def run_config(cfg: DictConfig) -> Config:
    """The configuration of a run in plain values, without Hydra's part, NOT_OF_A_RUN and a value of `resume`."""
    plain = OmegaConf.to_container(without_hydra(cfg), resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    config = {str(key): None if key == "resume" else value for key, value in plain.items() if key not in NOT_OF_A_RUN}
    make_absolute(config)
    return config


def make_absolute(node: MutableMapping[str, object]) -> None:
    """Makes the paths in a configuration absolute, in place, so that the run can be used from any folder.

    What may be a name as well, such as `encoder.weights`, is a path if it exists. "-", the standard input, is none.
    """
    names = {*PATHS_OR_NAMES, *(("name",) if str(node.get("_target_")).endswith((".hugging_face", ".hf_text")) else ())}
    for key, value in node.items():
        if isinstance(value, MutableMapping):
            make_absolute(value)
        elif (key in PATHS or key in names) and isinstance(value, str | Sequence):
            paths = [_absolute(each, key in PATHS) for each in ([value] if isinstance(value, str) else value)]
            node[key] = paths[0] if isinstance(value, str) else paths


def _absolute(value: object, surely: bool) -> object:
    if not isinstance(value, str) or value in ("", "-") or "://" in value:
        return value
    path = Path(value).expanduser()
    return str(absolute(path)) if surely or path.exists() else value


def absolute(path: Path) -> Path:
    """The path from the root on; `..` is resolved, with the links on the way to it."""
    return path.resolve() if ".." in path.parts else path.absolute()


def without_hydra(cfg: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def is_first_rank() -> bool:
    """Whether this process is the one that writes, the first rank of a distributed run or the only process."""
    return rank() == "0"


def rank() -> str:
    """The number of this process in a distributed run, as whoever started it has set it."""
    numbers = (os.environ.get(name, "0") for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return next((number for number in numbers if number != "0"), "0")


def resume_command(target: Path) -> str:
    """The command line that continues the run in the folder `target`, or from the checkpoint `target` on."""
    path, run = str(target.absolute()), run_around(target)
    value = path if re.fullmatch(r"[\w/.+-]+", path) else quoted(path)
    trust = " trust=true" if run is not None and needs_trust(read_config(run)) else ""
    return f"{Path(sys.argv[0]).name} {shlex.quote(f'resume={value}')}{trust}"


def readable(word: str) -> str:
    """An override with quotes around what Hydra's grammar reads only within them: letters beyond ASCII, and ~."""
    key, is_override, value = word.partition("=")
    parts = re.split(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""", value)  # every second one has quotes
    unquoted = r"[^\s,:=()\[\]{}]+(?: +[^\s,:=()\[\]{}]+)*"
    parts[::2] = [
        re.sub(unquoted, lambda text: text[0] if re.fullmatch(r"[\x00-}]*", text[0]) else quoted(text[0]), part)
        for part in parts[::2]
    ]
    return word if word.startswith("-") or not is_override else f"{key}={''.join(parts)}"


def quoted(text: str | Path) -> str:
    """A text as a value on Hydra's command line, whatever its characters."""
    return "'" + re.sub(r"\\*(?='|$)", lambda slashes: slashes[0] * 2, str(text)).replace("'", "\\'") + "'"
