"""Figures of a sweep over its seeds: mean and 95 % interval for each combination of the other values."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.special import stdtrit

from contrast.atomic import replacing
from contrast.run.jobs import COMPLETE, Job

SEED = "seed"


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds, give or take `half`: the half width of its 95 % interval, NaN for one seed."""

    mean: float
    half: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4f}" if math.isnan(self.half) else f"{self.mean:.4f} ± {self.half:.4f}"


@dataclass(frozen=True)
class Group:
    """Jobs that differ in their seed alone. `values` belong to the swept keys other than the seed."""

    values: tuple[str, ...]
    jobs: list[Job]

    def figures(self, metric: str) -> list[float]:
        return [job.metrics[metric] for job in self.jobs if job.status == COMPLETE and metric in job.metrics]

    def estimate(self, metric: str) -> Estimate | None:
        figures = self.figures(metric)
        return estimate(figures) if figures else None


def estimate(figures: Sequence[float]) -> Estimate:
    """Mean and t_{0.975, n-1} s / sqrt(n), with s the sample's standard deviation (Student 1908)."""
    n, mean = len(figures), math.fsum(figures) / len(figures)
    if n == 1:
        return Estimate(mean, math.nan, 1)
    variance = math.fsum((figure - mean) ** 2 for figure in figures) / (n - 1)
    return Estimate(mean, float(stdtrit(n - 1, 0.975)) * math.sqrt(variance / n), n)


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """Overrides that differ between the jobs, in the order of the command line."""
    keys = dict.fromkeys(key for job in jobs for key in job.swept)
    return [key for key in keys if len({job.swept.get(key) for job in jobs}) > 1]


def grouped(jobs: Sequence[Job], keys: Sequence[str]) -> list[Group]:
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(tuple(job.swept.get(key, "") for key in keys if key != SEED), []).append(job)
    return [Group(values, members) for values, members in groups.items()]


def shown_metrics(jobs: Sequence[Job], metric: str | None) -> list[str]:
    """What the sweep optimises, and the test figures that everybody asks for."""
    present = {key for job in jobs for key in job.metrics}
    return [key for key in dict.fromkeys((metric, "linear_top1", "knn_top1")) if key in present and key]


def table(jobs: Sequence[Job], metric: str | None) -> str:
    """The sweep as text: a line a group, then the jobs that failed or did not end, each by name."""
    keys, metrics = swept_keys(jobs), shown_metrics(jobs, metric)
    head = [*(key for key in keys if key != SEED), *metrics, "n"]
    rows = [
        [*group.values, *(str(group.estimate(name) or "-") for name in metrics), str(_complete(group))]
        for group in grouped(jobs, keys)
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
    for job in jobs:
        if job.status != COMPLETE:
            swept = " ".join(f"{key}={job.swept.get(key, '')}" for key in keys)
            lines.append(f"{job.status}: job {job.name} {swept}{f': {job.reason}' if job.reason else ''}".rstrip())
    return "\n".join(lines)


def write_csv(path: Path, jobs: Sequence[Job]) -> None:
    """A line a job: its number, how it ended, the swept values, the scalars of its metrics.json."""
    keys = swept_keys(jobs)
    metrics = list(dict.fromkeys(key for job in jobs for key in job.metrics))
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["num", "status", *keys, *metrics, "reason"])
        for job in jobs:
            swept = [job.swept.get(key, "") for key in keys]
            writer.writerow([job.name, job.status, *swept, *(job.metrics.get(key, "") for key in metrics), job.reason])


def _complete(group: Group) -> int:
    return sum(job.status == COMPLETE for job in group.jobs)
