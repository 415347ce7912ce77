"""A picture of a sweep: the metric against what was swept."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from contrast.atomic import replacing
from contrast.run.jobs import Job
from contrast.run.sweep_table import SEED, Group, grouped, swept_keys

LINES = 8  # as many values of a second key are still lines


def save_plot(path: Path, jobs: Sequence[Job], metric: str) -> bool:
    """Writes the drawing as PNG; False where no job has the metric."""
    figure = draw(jobs, metric)
    if figure is None:
        return False
    with replacing(path) as file:
        figure.savefig(file, dpi=150, format="png")
    return True


def draw(jobs: Sequence[Job], metric: str) -> Figure | None:
    """`metric` with 95 % error bars, single jobs as dots.

    One numeric key: a line. Two: a line for each value of the other. More: a panel a key. Names: a point for each.
    """
    keys = [key for key in swept_keys(jobs) if key != SEED]
    groups = [group for group in grouped(jobs, keys) if group.figures(metric)]
    if not groups:
        return None
    numeric = [all(number(group.values[i]) is not None for group in groups) for i in range(len(keys))]
    x = _axis(groups, numeric)
    panels = len(keys) if x is None and len(keys) > 1 and all(numeric) else 1
    figure = Figure(figsize=(6.4 * panels, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, panels, panel + 1) for panel in range(panels)]
    if x is not None:
        _lines(axes[0], groups, keys, x, metric)
    elif panels > 1:
        for panel, key in enumerate(keys):
            _cloud(axes[panel], groups, panel, metric)
            axes[panel].set_xlabel(key)
    else:
        _points(axes[0], groups, keys, metric)
    axes[0].set_ylabel(metric)
    for each in axes:
        each.grid(alpha=0.3)
    return figure


def number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


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


def _axis(groups: Sequence[Group], numeric: Sequence[bool]) -> int | None:
    """Which of one or two keys goes along x: the numeric one with more values, if the other leaves few lines."""
    if not 1 <= len(numeric) <= 2 or not any(numeric):
        return None
    counts = [len({group.values[i] for group in groups}) for i in range(len(numeric))]
    x = max((i for i, usable in enumerate(numeric) if usable), key=lambda i: counts[i])
    return x if len(numeric) == 1 or counts[1 - x] <= LINES else None


def _lines(axes: Axes, groups: Sequence[Group], keys: Sequence[str], x: int, metric: str) -> None:
    for other in dict.fromkeys(group.values[1 - x] if len(keys) == 2 else "" for group in groups):
        line = [group for group in groups if len(keys) == 1 or group.values[1 - x] == other]
        line.sort(key=lambda group: float(group.values[x]))
        _error_bars(axes, [float(group.values[x]) for group in line], line, metric, "-", other)
    axes.set_xlabel(keys[x])
    values = dict.fromkeys(group.values[x] for group in groups)
    if is_logarithmic([float(value) for value in values]):
        axes.set_xscale("log")
    if len(values) <= LINES:
        axes.minorticks_off()
        axes.set_xticks([float(value) for value in values], list(values))
    if len(keys) == 2:
        axes.legend(title=keys[1 - x])


def _points(axes: Axes, groups: Sequence[Group], keys: Sequence[str], metric: str) -> None:
    positions = [float(i) for i in range(len(groups))]
    _error_bars(axes, positions, groups, metric, "", "")
    axes.set_xticks(positions, ["\n".join(group.values) for group in groups], rotation=90 if len(groups) > LINES else 0)
    axes.set_xlabel(", ".join(keys) or "seeds")
    axes.margins(x=0.1)


def _cloud(axes: Axes, groups: Sequence[Group], key: int, metric: str) -> None:
    points = [(float(group.values[key]), figure) for group in groups for figure in group.figures(metric)]
    axes.scatter([value for value, _ in points], [figure for _, figure in points])
    if is_logarithmic([value for value, _ in points]):
        axes.set_xscale("log")


def _error_bars(
    axes: Axes, positions: Sequence[float], groups: Sequence[Group], metric: str, line: str, label: str
) -> None:
    estimates = [found for group in groups if (found := group.estimate(metric)) is not None]
    halves = [0.0 if math.isnan(found.half) else found.half for found in estimates]
    means = [found.mean for found in estimates]
    bars = axes.errorbar(positions, means, yerr=halves, fmt=f"o{line}", capsize=3, label=label)
    colour = bars.lines[0].get_color()
    for position, group in zip(positions, groups, strict=True):
        figures = group.figures(metric)
        if len(figures) > 1:
            axes.scatter([position] * len(figures), figures, s=8, alpha=0.4, color=colour)
