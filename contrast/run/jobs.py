"""The jobs of a sweep as their folders tell: what each was, how it ended, and whether it has to run again."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from contrast.errors import InputError

CONFIG, OVERRIDES, METRICS, ERROR = "config.yaml", "overrides.yaml", "metrics.json", "error.txt"
ASIDE = ".aside-"  # in the name of a folder that made place for another run

COMPLETE, FAILED, INTERRUPTED, NOT_RUN = "complete", "failed", "interrupted", "not run"


@dataclass(frozen=True)
class Job:
    """A job of a sweep. `swept` are its overrides as text, `reason` why it failed."""

    name: str
    folder: Path | None
    swept: dict[str, str]
    status: str
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""


def read_jobs(sweep_dir: Path, expected: Sequence[Sequence[str]] | None = None) -> list[Job]:
    """The jobs below `sweep_dir`, in order; where `expected` lists the overrides of each, exactly those.

    An expected job without a folder did not run; a folder that is not expected belongs to an earlier sweep.
    """
    found = {}
    for path in sorted(sweep_dir.rglob(OVERRIDES), key=_natural):
        name = str(path.parent.relative_to(sweep_dir))
        if ASIDE not in name:
            found[name] = path.parent
    jobs = [_read(name, folder) for name, folder in found.items()]
    if expected is None:
        return jobs
    by_overrides = {frozenset(job.swept.items()): job for job in jobs}
    wanted = [_pairs(overrides) for overrides in expected]
    return [
        by_overrides.get(frozenset(pairs.items()), Job(str(number), None, pairs, NOT_RUN))
        for number, pairs in enumerate(wanted)
    ]


def is_complete(folder: Path, config: dict[str, Any]) -> bool:
    """Whether the run in `folder` reached its figures, and with this very configuration."""
    return (folder / METRICS).is_file() and not (folder / ERROR).exists() and has_config(folder, config)


def has_config(folder: Path, config: dict[str, Any]) -> bool:
    path = folder / CONFIG
    if not path.is_file():
        return False
    same = OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(config)))  # as it reads after a round trip
    return bool(OmegaConf.to_container(OmegaConf.load(path)) == OmegaConf.to_container(same))


def prepare(folder: Path, config: dict[str, Any]) -> bool:
    """Makes `folder` ready for a job; True if it holds the beginning of this very job, to be continued.

    Nothing is deleted but the signs of how the job ended: what is not ours moves aside, under a name of its own.
    """
    if has_config(folder, config) and (folder / "checkpoints" / "last.ckpt").is_file():
        for name in (METRICS, ERROR):
            (folder / name).unlink(missing_ok=True)
        return True
    if folder.is_dir() and any(folder.iterdir()):
        number = 1
        while (aside := folder.with_name(f"{folder.name}{ASIDE}{number}")).exists():
            number += 1
        os.rename(folder, aside)
    folder.mkdir(parents=True, exist_ok=True)
    return False


def figure(metrics: dict[str, float], name: str) -> float:
    """The figure called `name`; InputError, naming those there are, where it is none of them."""
    if name not in metrics:
        raise InputError(f"metric={name} is none of the figures: {', '.join(sorted(metrics))}")
    return metrics[name]


def read_metrics(folder: Path) -> dict[str, float]:
    """The scalars of metrics.json; none where there is no such file."""
    path = folder / METRICS
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {key: value for key, value in found.items() if isinstance(value, (int, float))}


def _read(name: str, folder: Path) -> Job:
    swept = _pairs([str(item) for item in OmegaConf.load(folder / OVERRIDES)])
    if (folder / ERROR).exists():
        reason = (folder / ERROR).read_text(encoding="utf-8").partition("\n")[0]
        return Job(name, folder, swept, FAILED, reason=reason)
    status = COMPLETE if (folder / METRICS).is_file() else INTERRUPTED
    return Job(name, folder, swept, status, read_metrics(folder))


def _pairs(overrides: Sequence[str]) -> dict[str, str]:
    split = (item.lstrip("+").partition("=") for item in overrides)
    return {key: value.strip("'\"") for key, _, value in split}


def _natural(path: Path) -> list[tuple[int, str]]:
    """Orders 2 before 10."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
