"""The end of a sweep: its jobs as their folders record them, a table with 95 % intervals over seeds, and a plot."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import stdtrit

from contrast.atomic import replacing, rewrite_csv
from contrast.run.folder import (
    ASIDE,
    ERROR,
    INSTEAD,
    METRICS,
    OVERRIDES,
    PRUNED,
    read_metrics,
    read_overrides,
    title_of,
)

COMPLETE, ENDED_EARLY, FAILED, INTERRUPTED, NOT_RUN = "complete", "pruned", "failed", "interrupted", "not run"
SEED = "seed"
MAX_TICKS = 8  # with more numbers along x, not every number has a tick
MARKS = "circle: mean over seeds; bar: 95 % interval of the mean; dot: one run"
MAX_LINES = 10  # more lines get no legend


@dataclass(frozen=True)
class Job:
    """A job of a sweep. `swept` holds its overrides as text, `reason` why it failed or when it was pruned."""

    name: str
    folder: Path | None
    swept: dict[str, str]
    status: str
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""


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
        """The metric of each complete job that has it, and in which it is a number."""
        return [job.metrics[metric] for job in self.complete(metric)]

    def by_seed(self, metric: str) -> dict[str, float]:
        return {job.swept[SEED]: job.metrics[metric] for job in self.complete(metric) if SEED in job.swept}

    def complete(self, metric: str) -> list[Job]:
        complete = (job for job in self.jobs if job.status == COMPLETE and metric in job.metrics)
        return [job for job in complete if math.isfinite(job.metrics[metric])]


def report(sweep_dir: Path, metrics: Sequence[str], expected: Sequence[Sequence[str]] | None = None) -> list[Job]:
    """Prints and writes the results of the jobs below `sweep_dir`; returns the jobs.

    metrics   names in metrics.json: the first columns. The first of them is plotted and compared seed by seed
    expected  overrides of each job, if they are known beforehand (see `read_jobs`)
    """
    jobs = read_jobs(sweep_dir, expected)
    measured = {key for job in jobs for key in job.metrics}
    metrics = [key if key in measured else INSTEAD.get(key, key) for key in metrics]
    if any(job.folder is not None for job in jobs):
        lines = [table(jobs, metrics), *(paired(jobs, metrics[0]) if metrics else ())]
        print("\n" + "\n".join(lines), flush=True)  # before the files, for which the disk may have no room
        write_csv(sweep_dir / "sweep.csv", jobs)
        drawn = bool(metrics) and save_plot(sweep_dir / "sweep.png", jobs, metrics[0])
        print(f"{sweep_dir / 'sweep.csv'}{', sweep.png' if drawn else ''}", flush=True)
    return jobs


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and t_{0.975, n-1} s / sqrt(n), with s the sample's standard deviation (Student 1908)."""
    n = len(values)
    half = float(stdtrit(n - 1, 0.975)) * stdev(values) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(fmean(values), half, n)


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """Overrides that differ between the jobs, in the order of the command line."""
    keys = dict.fromkeys(key for job in jobs for key in job.swept)
    return [key for key in keys if len({job.swept.get(key) for job in jobs}) > 1]


def grouped(jobs: Sequence[Job], keys: Sequence[str]) -> list[Group]:
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(tuple(job.swept.get(key, "") for key in keys if key != SEED), []).append(job)
    return [Group(values, members) for values, members in groups.items()]


def paired(jobs: Sequence[Job], metric: str) -> list[str]:
    """A line for each group with two or more seeds in common with the first one: the mean of the differences by seed.

    Their interval is narrower than those of the two means, where the seeds move both in the same way.
    """
    keys, lines = swept_keys(jobs), []
    names = [key for key in keys if key != SEED]
    first, *others = [(group.by_seed(metric), " ".join(group.values)) for group in grouped(jobs, keys)]
    for values, name in others if SEED in keys and names else ():
        differences = [values[seed] - first[0][seed] for seed in values if seed in first[0]]
        if len(differences) > 1:
            mean = estimate(differences)
            higher = "higher" if mean.mean > 0 else "lower"
            by = Estimate(abs(mean.mean), mean.half, mean.n)
            lines.append(f"{name}: {metric} is {higher} than with {first[1]} by {by}, over {mean.n} seeds")
    return lines


def table_metrics(jobs: Sequence[Job], chosen: Sequence[str]) -> list[str]:
    """The metrics of the table: those that were chosen, the first of them if it was measured, and the usual ones."""
    measured = {key for job in jobs for key in job.metrics}
    others = [key for key in ("linear_top1", "knn_top1") if key in measured]
    return list(dict.fromkeys([*(key for key in chosen if key in measured or key != chosen[0]), *others]))


def label(job: Job, keys: Sequence[str]) -> str:
    """What distinguishes a job from the others: "head.temperature=0.1 seed=0"."""
    return " ".join(f"{key}={job.swept.get(key, '')}" for key in keys)


def group_rows(jobs: Sequence[Job], keys: Sequence[str], metrics: Sequence[str]) -> list[list[str]]:
    """For each group its values, the estimate of each metric, and the number of complete jobs."""
    rows = []
    for group in grouped(jobs, keys):
        cells = [str(estimate(values)) if (values := group.measured(name)) else "-" for name in metrics]
        rows.append([*group.values, *cells, str(sum(job.status == COMPLETE for job in group.jobs))])
    return rows


def table(jobs: Sequence[Job], chosen: Sequence[str]) -> str:
    """The sweep as text: a line for each group, then each job that is not complete, by name."""
    keys, metrics = swept_keys(jobs), table_metrics(jobs, chosen)
    rows = [[*(key for key in keys if key != SEED), *metrics, "n"], *group_rows(jobs, keys, metrics)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    for job in jobs:
        if job.status != COMPLETE:
            reason = f": {job.reason}" if job.reason else ""
            lines.append(f"{job.status}: job {job.name} {label(job, keys)}{reason}".rstrip())
    return "\n".join(lines)


def run_title(jobs: Sequence[Job]) -> str:
    """What the jobs have in common, in a line."""
    return next((title for job in jobs if (title := title_of(job.folder))), "")


def write_csv(path: Path, jobs: Sequence[Job]) -> None:
    """A line for each job: its number, how it ended, the swept values, the numbers of its metrics.json."""
    keys = swept_keys(jobs)
    metrics = list(dict.fromkeys(key for job in jobs for key in job.metrics))
    heads = ["num", "status", *keys, *metrics, "reason"]
    rows: list[list[object]] = []
    for job in jobs:
        given = {**job.swept, **job.metrics, "num": job.name, "status": job.status, "reason": job.reason}
        rows.append([given.get(head, "") for head in heads])
    rewrite_csv(path, [heads, *rows])


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


def _read_job(name: str, folder: Path) -> Job:
    swept = _values(read_overrides(folder))
    if (folder / ERROR).exists():
        reason = (folder / ERROR).read_text(encoding="utf-8").partition("\n")[0]
        return Job(name, folder, swept, FAILED, reason=reason)
    status, metrics = COMPLETE if (folder / METRICS).is_file() else INTERRUPTED, read_metrics(folder)
    if PRUNED in metrics:
        return Job(name, folder, swept, ENDED_EARLY, metrics, f"after {metrics[PRUNED]:g} epochs")
    return Job(name, folder, swept, status, metrics)


def _values(overrides: Sequence[str]) -> dict[str, str]:
    """The overrides by key, without their `+` and quotes."""
    split = (item.lstrip("+").partition("=") for item in overrides)
    return {key: value.strip("'\"") for key, _, value in split}


def save_plot(path: Path, jobs: Sequence[Job], metric: str) -> bool:
    """Writes the plot as PNG; False if no job has the metric."""
    figure = draw(jobs, metric)
    if figure is not None:
        with replacing(path) as file:
            figure.savefig(file, dpi=150, format="png")
    return figure is not None


def draw(jobs: Sequence[Job], metric: str) -> Figure | None:
    """`metric` over each swept key, in a panel for each.

    Each combination of the other keys' values is a line: the mean over seeds with its 95 % interval, and each job as a
    dot. None if no job has the metric.
    """
    keys = [key for key in swept_keys(jobs) if key != SEED]
    groups = [group for group in grouped(jobs, keys) if group.measured(metric)]
    if not groups:
        return None
    # without pyplot, which would choose a window system for the whole process
    figure = Figure(figsize=(6.4 * max(1, len(keys)), 4.6), layout="constrained")
    figure.suptitle(f"{metric}: {run_title(jobs)}\n{MARKS}", fontsize=10)
    for place, key in enumerate(keys or [SEED]):
        axes = figure.add_subplot(1, max(1, len(keys)), place + 1, xlabel=key, ylabel=metric)
        axes.grid(alpha=0.3)
        lines: dict[str, list[tuple[str, list[float]]]] = {}
        for group in groups:
            others = ", ".join(group.values[:place] + group.values[place + 1 :])
            lines.setdefault(others, []).append((group.values[place] if keys else "", group.measured(metric)))
        _draw_lines(axes, lines)
        if 1 < len(lines) <= MAX_LINES:
            other = ", ".join(other for other in keys if other != key)
            axes.legend(title=other, loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, title_fontsize=8)
    return figure


def _draw_lines(axes: Axes, lines: dict[str, list[tuple[str, list[float]]]]) -> None:
    """Lines of (x, the metric of each job) by their label. Values of x that are no numbers are categories in order."""
    texts = dict.fromkeys(text for line in lines.values() for text, _ in line)
    numbers = {text: float(text) for text in texts} if is_numeric(texts) else {}
    if is_logarithmic(numbers.values()):
        axes.set_xscale("log")
    if numbers and len(numbers) <= MAX_TICKS:
        axes.minorticks_off()
        axes.set_xticks(list(numbers.values()), list(numbers))
    for label, line in lines.items():
        points = sorted((numbers[text], values) for text, values in line) if numbers else line
        estimates = [estimate(values) for _, values in points]
        halves = [0.0 if math.isnan(each.half) else each.half for each in estimates]
        xs, style = [x for x, _ in points], "o-" if numbers else "o"
        bars = axes.errorbar(xs, [each.mean for each in estimates], yerr=halves, fmt=style, capsize=3, label=label)
        for x, values in points:
            axes.scatter([x] * len(values), values, s=8, alpha=0.4, color=bars.lines[0].get_color())


def is_numeric(texts: Iterable[str]) -> bool:
    try:
        return all(math.isfinite(float(text)) for text in texts)
    except ValueError:
        return False


def is_logarithmic(values: Collection[float]) -> bool:
    """Whether numbers are drawn on a logarithmic axis: all are positive, and the largest is 4 times the smallest."""
    return bool(values) and min(values) > 0 and max(values) >= 4 * min(values)
