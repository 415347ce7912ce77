"""The jobs of a sweep as their folders record them: what each was, how it ended, and whether it has to run again."""

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from contrast.errors import InputError
from contrast.run.folder import CONFIG, ERROR, METRICS, OVERRIDES, read_config, read_overrides

ASIDE = ".aside-"  # in the name of a folder that made room for another run

COMPLETE, FAILED, INTERRUPTED, NOT_RUN = "complete", "failed", "interrupted", "not run"


@dataclass(frozen=True)
class Job:
    """A job of a sweep. `swept` holds its overrides as text, `reason` says why it failed."""

    name: str
    folder: Path | None
    swept: dict[str, str]
    status: str
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""


def read_jobs(sweep_dir: Path, expected: Sequence[Sequence[str]] | None = None) -> list[Job]:
    """The jobs below `sweep_dir`, in order; if `expected` lists the overrides of each, exactly those.

    An expected job without a folder did not run; a folder that is not expected belongs to an earlier sweep.
    """
    folders = [path.parent for path in sweep_dir.rglob(OVERRIDES) if ASIDE not in str(path)]
    folders.sort(key=lambda folder: (len(str(folder)), folder))  # 2 before 10
    jobs = [_read_job(str(folder.relative_to(sweep_dir)), folder) for folder in folders]
    if expected is None:
        return jobs
    by_overrides = {frozenset(job.swept.items()): job for job in jobs}
    swept = [_values(overrides) for overrides in expected]
    return [
        by_overrides.get(frozenset(values.items()), Job(str(number), None, values, NOT_RUN))
        for number, values in enumerate(swept)
    ]


def is_complete(folder: Path, config: dict[str, Any]) -> bool:
    """Whether the run in `folder` reached its metrics, and with this very configuration."""
    return (folder / METRICS).is_file() and not (folder / ERROR).exists() and has_config(folder, config)


def has_config(folder: Path, config: dict[str, Any]) -> bool:
    """Whether the run in `folder` has this configuration, as it reads after a round trip through a file."""
    if not (folder / CONFIG).is_file():
        return False
    written = OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(config)))
    return read_config(folder) == OmegaConf.to_container(written)


def prepare_folder(folder: Path, config: dict[str, Any]) -> bool:
    """Makes `folder` ready for a job; True if it holds the beginning of this very job, to be continued.

    Only the record of how the job ended is deleted. A folder of another job moves aside, to a name of its own.
    """
    if has_config(folder, config) and (folder / "checkpoints" / "last.ckpt").is_file():
        for name in (METRICS, ERROR):
            (folder / name).unlink(missing_ok=True)
        return True
    if folder.is_dir() and any(folder.iterdir()):
        names = (folder.with_name(f"{folder.name}{ASIDE}{number}") for number in itertools.count(1))
        os.rename(folder, next(name for name in names if not name.exists()))
    folder.mkdir(parents=True, exist_ok=True)
    return False


def metric_of(metrics: dict[str, float], name: str) -> float:
    """The metric called `name`; InputError, naming those that were measured, if it is none of them."""
    if name not in metrics:
        raise InputError(f"metric={name} is none of the metrics: {', '.join(sorted(metrics))}")
    return metrics[name]


def read_metrics(folder: Path) -> dict[str, float]:
    """The numbers in metrics.json; none if there is no such file."""
    path = folder / METRICS
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {key: value for key, value in metrics.items() if isinstance(value, (int, float))}


def _read_job(name: str, folder: Path) -> Job:
    swept = _values(read_overrides(folder))
    if (folder / ERROR).exists():
        reason = (folder / ERROR).read_text(encoding="utf-8").partition("\n")[0]
        return Job(name, folder, swept, FAILED, reason=reason)
    status = COMPLETE if (folder / METRICS).is_file() else INTERRUPTED
    return Job(name, folder, swept, status, read_metrics(folder))


def _values(overrides: Sequence[str]) -> dict[str, str]:
    """The overrides by key, without their `+` and quotes."""
    split = (item.lstrip("+").partition("=") for item in overrides)
    return {key: value.strip("'\"") for key, _, value in split}
