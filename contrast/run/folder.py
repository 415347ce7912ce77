"""The folder of a run: claimed by one run alone, and holding its configuration and its metrics."""

import itertools
import json
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

import yaml
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from contrast.atomic import rewrite
from contrast.config.old_names import current
from contrast.config.trust import PATHS, PATHS_OR_NAMES, Config, needs_trust
from contrast.errors import InputError, named_errors, one_line
from contrast.run.lock import LOCK

CONFIG, OVERRIDES, METRICS, ERROR = "config.yaml", "overrides.yaml", "metrics.json", "error.txt"
MLFLOW = "mlflow_id"  # the id of the run in MLflow and, in a second line, the store that has it
PRUNED = "pruned_after_epochs"  # in the metrics of a job of a sweep that was ended early for being worse than others
STARTED = {CONFIG, OVERRIDES, LOCK, "environment.json", "views.png", "wandb", "wandb_id", MLFLOW, "tensorboard"}
FILES = [CONFIG, OVERRIDES, METRICS, ERROR, LOCK, MLFLOW]
FILES += ["metrics.jsonl", "environment.json", "curves.png", "views.png", "wandb_id"]
NOT_OF_A_RUN = ("trust", "columns", "report")  # keys of the configuration that do not shape what a run computes
# metrics that sweeps optimise by default -> the metrics that replace them for data without labels or captions
INSTEAD = {"linear_val_top1": "held_out_top1", "image_to_text_recall1": "recall1"}
ASIDE = ".aside-"  # in the name of a folder to which the files of another job were moved


def conf_folder() -> Path:
    """`conf/` inside the package, as a wheel has it, or next to it, as a checkout has it."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if folder.is_dir():
            return folder
    raise InputError(f"no folder conf/ in {package} or next to it: the installation is not complete")


def claim(folder: Path) -> tuple[Path, list[Path] | None]:
    """Claims `folder` or, if another run has it, `folder_2`, `folder_3`, ..., by creating its config.yaml.

    Returns the folder, and the folders that had to be made: itself, then those around it. The second is None if the
    folder was there and held files.

    Creating a file exclusively is atomic: of two runs that start in the same second, one gets the next name.
    """
    for candidate in itertools.chain([folder], (folder.with_name(f"{folder.name}_{i}") for i in itertools.count(2))):
        try:
            created = [each for each in (candidate, *candidate.parents) if not each.exists()]
            candidate.mkdir(parents=True, exist_ok=True)
            is_empty = not any(candidate.iterdir())
            (candidate / CONFIG).open("x").close()
            return candidate, created if is_empty else None
        except OSError as error:
            if not isinstance(error, FileExistsError) or not candidate.is_dir():
                raise InputError(f"{candidate} cannot be a run folder: {error.strerror}") from error
    raise AssertionError("unreachable: the candidates never end")


def write_config(folder: Path, config: dict[str, object], overrides: list[str]) -> None:
    """config.yaml: all that shapes the run, in plain values; overrides.yaml: the command line's part of it."""
    for name, content in ((CONFIG, config), (OVERRIDES, overrides)):
        rewrite(folder / name, OmegaConf.to_yaml(OmegaConf.create(content)))


def read_config(folder: Path) -> dict[str, object]:
    """The configuration of the run in `folder`, under today's names.

    It is data to compare with: `compose.store_config` says what a stranger's may call.
    """
    saved = _read_yaml(folder / CONFIG)
    return current({str(key): value for key, value in saved.items()} if isinstance(saved, dict) else {})


def read_overrides(folder: Path) -> list[str]:
    saved = _read_yaml(folder / OVERRIDES) if (folder / OVERRIDES).exists() else []
    if saved and not isinstance(saved, list):
        raise InputError(f"{folder / OVERRIDES} is damaged: it holds no list")
    return [str(item) for item in saved] if isinstance(saved, list) else []


def _read_yaml(path: Path) -> object:
    """Plain containers, in which nothing is computed. InputError for what no run writes: aliases, which can stand for
    any amount of text, and tags."""
    try:
        text = path.read_text(encoding="utf-8")
        if "*" in text and any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise InputError(f"{path} is damaged: it has aliases in it")
        if not isinstance(yaml.compose(text, yaml.SafeLoader), yaml.CollectionNode | None):
            raise InputError(f"{path} is damaged: it holds neither a list nor a mapping")
        return OmegaConf.to_container(OmegaConf.create(text)) if text.strip() else {}
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, RecursionError, IsADirectoryError) as error:
        raise InputError(f"{path} is damaged: {error}") from error


def check_files(folder: Path) -> None:
    """Raises InputError for a damaged file of a run, and for a folder or a device in the place of one."""
    for path in (folder / name for name in FILES):
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is damaged: it is no regular file")
    read_overrides(folder)
    read_metrics(folder)


def is_complete(folder: Path, config: dict[str, object]) -> bool:
    """Whether the run in `folder` has its final metrics and no error, and has this configuration."""
    return (folder / METRICS).is_file() and not (folder / ERROR).exists() and has_config(folder, config)


def has_config(folder: Path, config: dict[str, object]) -> bool:
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


def prepare_folder(folder: Path, config: dict[str, object]) -> bool:
    """Makes `folder` ready for a job; True if it holds the beginning of the same job, which is then continued.

    Only the record of how the job ended is deleted. Files of another job, except for the lock, are moved to a folder
    beside it.
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
    """As `value_of`; InputError with the names of all metrics if there is no such metric."""
    value = value_of(metrics, name)
    if value is None:
        raise InputError(f"metric={name} is none of the metrics: {', '.join(sorted(metrics))}")
    return value


def value_of(metrics: Mapping[str, float], name: str) -> float | None:
    """The metric called `name`, or the one that replaces it in a run without labels or captions; None without both."""
    return metrics.get(name, metrics.get(INSTEAD.get(name, name)))


def read_metrics(folder: Path) -> dict[str, float]:
    """The numbers in metrics.json; none if there is no such file. Raises InputError for a damaged one."""
    path = folder / METRICS
    with named_errors((ValueError, RecursionError), f"{path} is damaged"):
        metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(metrics, dict):
        raise InputError(f"{path} is damaged: it holds no mapping")
    return {key: value for key, value in metrics.items() if isinstance(value, (int, float))}


def run_around(what: str | Path) -> Path | None:
    """The run folder that `what` is, or that holds the checkpoint `what`; None if there is none."""
    path = absolute(Path(what).expanduser())
    return next((folder for folder in (path, *path.parents) if (folder / CONFIG).is_file()), None)


def record(folder: Path | None) -> Config:
    """What the folder of a run says of it: its metrics, its command and the versions of packages; {} without one."""
    if folder is None:
        return {}
    path, packages = folder / "environment.json", {"python": "unknown"}
    try:
        if path.is_file():
            start = json.loads(path.read_text(encoding="utf-8"))[-1]
            packages = dict(start.get("packages") or {}) | {"python": start.get("python", "unknown")}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        warnings.warn(f"{path} is damaged ({one_line(error)}): the versions of packages are left out", stacklevel=2)
    return {"metrics": read_metrics(folder), "overrides": read_overrides(folder), "packages": packages}


def title(config: Config) -> str:
    """What a run is, in a line: "simclr on digits, encoder conv_net"."""

    def called(node: Config) -> str:
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


def discard(folder: Path, created: Sequence[Path]) -> None:
    """Empties the folder of a run that took no step, if it holds only what is written at the start.

    created  the folders that `claim` has made, which are then removed, if they are empty
    """
    names = {path.name for path in folder.iterdir() if path.suffix != ".log"}
    if CONFIG in names and names <= STARTED:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for each in created:
            if not any(each.iterdir()):
                each.rmdir()


def run_config(cfg: DictConfig) -> dict[str, object]:
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
    """The number of this process in a distributed run, from the environment that its launcher has set."""
    numbers = (os.environ.get(name, "0") for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return next((number for number in numbers if number != "0"), "0")


def mlflow_store() -> Path:
    """Where MLflow keeps the runs that are begun in this folder, unless MLFLOW_TRACKING_URI is set."""
    return Path("runs", "mlflow.db").absolute()


def read_mlflow(folder: Path) -> tuple[str | None, str]:
    """The id of the run in MLflow and its store; None and an empty text of a run that was not logged there."""
    path = folder / MLFLOW
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return (lines[0] if lines else None), (lines[1] if len(lines) > 1 else "")


def foreign_store(folder: Path) -> str | None:
    """The store of MLflow that a run folder names, unless a run in this place would use it anyway; else None.

    A run creates its store if it does not exist. By default it is `runs/mlflow.db`, in a folder around that of the run.
    """
    if os.environ.get("MLFLOW_TRACKING_URI"):  # which is used instead
        return None
    with named_errors((OSError, UnicodeDecodeError), f"{folder / MLFLOW} is damaged"):
        _, store = read_mlflow(folder)
    default = mlflow_store()
    around = [parent / default.name for parent in folder.absolute().parents if parent.name == default.parent.name]
    known = ["", *(f"sqlite:///{path}" for path in (default, *around))]
    return None if store in known else store


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
    return QuotedString(str(text), Quote.single).with_quotes()
