"""The end of a sweep: its table over seeds, with 95 % intervals, sweep.csv and sweep.png."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.special import stdtrit

from contrast.atomic import replacing
from contrast.run.jobs import COMPLETE, Job, read_jobs

SEED = "seed"
MAX_TICKS = 8  # more numbers along x are not each named


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds; `half` is half the width of its 95 % interval, NaN for one seed."""

    mean: float
    half: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4f}" if math.isnan(self.half) else f"{self.mean:.4f} ± {self.half:.4f}"


@dataclass(frozen=True)
class Group:
    """Jobs that differ in their seed alone. `values` are those of the other swept keys."""

    values: tuple[str, ...]
    jobs: list[Job]

    def measured(self, metric: str) -> list[float]:
        """The metric of each complete job that has it."""
        return [job.metrics[metric] for job in self.jobs if job.status == COMPLETE and metric in job.metrics]


def report(sweep_dir: Path, metric: str | None, expected: Sequence[Sequence[str]] | None = None) -> list[Job]:
    """Prints and writes the results of the jobs below `sweep_dir`; returns the jobs.

    metric    of metrics.json, for the plot and the first column
    expected  overrides of each job, if they are known beforehand (see `read_jobs`)
    """
    jobs = read_jobs(sweep_dir, expected)
    if any(job.folder is not None for job in jobs):
        write_csv(sweep_dir / "sweep.csv", jobs)
        drawn = metric is not None and save_plot(sweep_dir / "sweep.png", jobs, metric)
        print(f"\n{table(jobs, metric)}\n{sweep_dir / 'sweep.csv'}{', sweep.png' if drawn else ''}", flush=True)
    return jobs


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and t_{0.975, n-1} s / sqrt(n), with s the sample's standard deviation (Student 1908)."""
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Estimate(mean, math.nan, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
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


def table(jobs: Sequence[Job], metric: str | None) -> str:
    """The sweep as text: a line for each group, then the jobs that failed or did not end, each by name."""
    keys, measured = swept_keys(jobs), {key for job in jobs for key in job.metrics}
    metrics = [key for key in dict.fromkeys((metric, "linear_top1", "knn_top1")) if key is not None and key in measured]
    rows = [[*(key for key in keys if key != SEED), *metrics, "n"]]
    for group in grouped(jobs, keys):
        cells = [str(estimate(values)) if (values := group.measured(name)) else "-" for name in metrics]
        rows.append([*group.values, *cells, str(sum(job.status == COMPLETE for job in group.jobs))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    for job in jobs:
        if job.status != COMPLETE:
            swept = " ".join(f"{key}={job.swept.get(key, '')}" for key in keys)
            lines.append(f"{job.status}: job {job.name} {swept}{f': {job.reason}' if job.reason else ''}".rstrip())
    return "\n".join(lines)


def write_csv(path: Path, jobs: Sequence[Job]) -> None:
    """A line for each job: its number, how it ended, the swept values, the numbers of its metrics.json."""
    keys = swept_keys(jobs)
    metrics = list(dict.fromkeys(key for job in jobs for key in job.metrics))
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["num", "status", *keys, *metrics, "reason"], extrasaction="ignore")
        writer.writeheader()
        for job in jobs:
            given = {"num": job.name, "status": job.status, "reason": job.reason}
            writer.writerow({**job.swept, **job.metrics, **given})


def save_plot(path: Path, jobs: Sequence[Job], metric: str) -> bool:
    """Writes the drawing as PNG; False if no job has the metric."""
    figure = draw(jobs, metric)
    if figure is not None:
        with replacing(path) as file:
            figure.savefig(file, dpi=150, format="png")
    return figure is not None


def draw(jobs: Sequence[Job], metric: str) -> Figure | None:
    """`metric` over the swept values.

    One key, or two with a line for each value of the one with fewer values: the mean over seeds with its 95 % interval,
    and each job as a dot. More keys: a panel each, with the jobs alone.
    """
    keys = [key for key in swept_keys(jobs) if key != SEED]
    groups = [group for group in grouped(jobs, keys) if group.measured(metric)]
    if not groups:
        return None
    columns = {key: [group.values[i] for group in groups] for i, key in enumerate(keys)} or {
        "seeds": [""] * len(groups)
    }
    # along x the numbers with most values
    order = sorted(columns, key=lambda key: (not is_numeric(columns[key]), -len(set(columns[key]))))
    shown = order[:1] if len(order) <= 2 else list(columns)
    figure = Figure(figsize=(6.4 * len(shown), 4.2), layout="constrained")
    FigureCanvasAgg(figure)  # pyplot would choose a window system for the whole process
    for place, key in enumerate(shown, start=1):
        axes = figure.add_subplot(1, len(shown), place, xlabel=key, ylabel=metric)
        axes.grid(alpha=0.3)
        xs = _place_values(axes, columns[key])
        if len(order) > 2:
            points = [(x, value) for x, group in zip(xs, groups, strict=True) for value in group.measured(metric)]
            axes.scatter(*zip(*points, strict=True))
            continue
        lines = columns[order[1]] if len(order) == 2 else [""] * len(groups)
        for line in dict.fromkeys(lines):
            members = [
                (x, group.measured(metric)) for x, group, each in zip(xs, groups, lines, strict=True) if each == line
            ]
            _error_bars(axes, sorted(members), "o-" if is_numeric(columns[key]) else "o", line)
        if len(order) == 2:
            axes.legend(title=order[1])
    return figure


def is_numeric(column: Sequence[str]) -> bool:
    try:
        return all(math.isfinite(float(text)) for text in column)
    except ValueError:
        return False


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether the values span a decade, or grow by a factor rather than by a step."""
    values = sorted(set(values))
    if len(values) < 2 or values[0] <= 0:
        return False
    if values[-1] / values[0] >= 10:
        return True
    factors = [b / a for a, b in pairwise(values)]
    steps = [b - a for a, b in pairwise(values)]
    return len(values) > 2 and max(factors) / min(factors) < max(steps) / min(steps)


def _place_values(axes: Axes, column: Sequence[str]) -> list[float]:
    """Where the values of a swept key are along x, with their ticks: numbers in place, names one after the other."""
    places = {text: float(text) if is_numeric(column) else i for i, text in enumerate(dict.fromkeys(column))}
    if is_numeric(column) and is_logarithmic(list(places.values())):
        axes.set_xscale("log")
    if len(places) <= MAX_TICKS or not is_numeric(column):
        axes.minorticks_off()
        axes.set_xticks(list(places.values()), list(places), rotation=90 if len(places) > MAX_TICKS else 0)
    return [places[text] for text in column]


def _error_bars(axes: Axes, points: Sequence[tuple[float, list[float]]], style: str, label: str) -> None:
    """A line through (x, the metric of each job there)."""
    estimates = [estimate(values) for _, values in points]
    halves = [0.0 if math.isnan(each.half) else each.half for each in estimates]
    xs, means = [x for x, _ in points], [each.mean for each in estimates]
    bars = axes.errorbar(xs, means, yerr=halves, fmt=style, capsize=3, label=label)
    for x, values in points:
        if len(values) > 1:
            axes.scatter([x] * len(values), values, s=8, alpha=0.4, color=bars.lines[0].get_color())
