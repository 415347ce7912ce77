"""`curves.png`: the course of a run at a glance, drawn from its `metrics.csv`."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from contrast.atomic import replacing
from contrast.run.csv_log import read_rows


@dataclass(frozen=True)
class Panel:
    """One axes. `lines` are columns of metrics.csv with their names, `right` those on a second axis; `figures` names
    the figure of metrics.json that belongs to a column: a star for the trained encoder's, dashed the untrained's."""

    title: str
    unit: str
    lines: dict[str, str]
    right: dict[str, str]
    right_unit: str = ""
    figures: dict[str, str] | None = None
    log: bool = False
    noisy: bool = True  # long lines are averaged
    from_zero: bool = False


PANELS = (
    Panel("Loss", "nats", {"train/loss": "loss", "train/bound": "log candidates - loss"}, {}),
    Panel("Contrastive top-1", "fraction of queries", {"train/top1": "positive ranked first"}, {}),
    Panel(
        "Frozen features",
        "top-1 accuracy",
        {"online/knn_top1": "kNN", "online/linear_top1": "linear probe"},
        {},
        figures={"online/knn_top1": "knn_top1", "online/linear_top1": "linear_top1"},
    ),
    Panel(
        "Scores",
        "score",
        {"train/positive_score": "positives, mean", "train/negative_score": "negatives, mean"},
        {},
    ),
    Panel(
        "Alignment and uniformity",
        "alignment",
        {"train/alignment": "alignment"},
        {"train/uniformity": "uniformity"},
        "uniformity",
    ),
    Panel(
        "Effective rank",
        "dimensions",
        {"train/rank_embedding": "embedding", "train/rank_projection": "projection"},
        {},
    ),
    Panel(
        "Temperature and learning rate",
        "temperature",
        {"train/temperature": "temperature"},
        {"train/lr": "learning rate"},
        "learning rate",
        noisy=False,
    ),
    Panel("Gradient norm", "L2 norm", {"train/grad_norm": "gradient norm"}, {}, log=True),
    Panel("Speed", "images / second", {"train/images_per_second": "speed"}, {}, from_zero=True),
)

_COLOURS = ("#2f6db3", "#d9722e", "#3a9a5b")
_GREY = "#666666"
Curve = tuple[np.ndarray, np.ndarray]  # steps, values


def save_curves(run_dir: str | os.PathLike[str]) -> Path | None:
    """Draws `<run_dir>/curves.png` and returns its path; None, and no file, while there is nothing to draw.

    Only panels whose columns were logged appear. `metrics.json`, where it exists, gives the figures on the test set.
    """
    run_dir = Path(run_dir)
    curves = read_curves(run_dir / "metrics.csv")
    final = run_dir / "metrics.json"
    figures: dict[str, float] = json.loads(final.read_text(encoding="utf-8")) if final.exists() else {}
    shown = [panel for panel in PANELS if any(name in curves for name in (*panel.lines, *panel.right))]
    if not shown:
        return None
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    # A figure of its own canvas: pyplot would keep it, and choose a window system, for the whole process.
    figure = Figure(figsize=(4.6 * columns, 3.1 * rows + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(run_dir.absolute().name, fontsize=11, color=_GREY)
    for place, panel in enumerate(shown, start=1):
        _draw(figure.add_subplot(rows, columns, place), panel, curves, figures)
    path = run_dir / "curves.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return path


def read_curves(path: Path) -> dict[str, Curve]:
    """metric -> (steps [n], values [n]) of a `metrics.csv`, the steps at which it was logged as a finite number."""
    columns, rows = read_rows(path)
    curves = {}
    for name in columns:
        if name in ("step", "epoch"):
            continue
        points = np.array([(float(row["step"]), float(row[name])) for row in rows if name in row]).reshape(-1, 2)
        points = points[np.isfinite(points).all(axis=1)]
        if len(points):
            curves[name] = points[:, 0], points[:, 1]
    return curves


def _draw(axes: Axes, panel: Panel, curves: dict[str, Curve], figures: dict[str, float]) -> None:
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel("optimiser step", fontsize=8)
    axes.set_ylabel(panel.unit, fontsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.margins(x=0.01)
    colours = iter(_COLOURS)
    for column, label in panel.lines.items():
        if column not in curves:
            continue
        colour = next(colours)
        _line(axes, curves[column], colour, label, panel.noisy)
        figure = (panel.figures or {}).get(column, "")
        if f"untrained_{figure}" in figures:
            level = figures[f"untrained_{figure}"]
            axes.axhline(level, color=colour, linewidth=1, linestyle="--", label=f"{label}, untrained, test set")
        if figure in figures:
            axes.plot(curves[column][0][-1:], [figures[figure]], "*", color=colour, label=f"{label}, test set")
    if panel.log and all((curves[name][1] > 0).all() for name in panel.lines if name in curves):
        axes.set_yscale("log")
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    _tidy(axes)
    handles, names = axes.get_legend_handles_labels()
    for column, label in panel.right.items():
        if column in curves:
            colour = next(colours)
            twin = axes.twinx()
            _line(twin, curves[column], colour, label, panel.noisy)
            axes.yaxis.label.set_color(_COLOURS[0])
            twin.set_ylabel(panel.right_unit, fontsize=8, color=colour)
            twin.margins(x=0.01)
            _tidy(twin, right=True)
            more = twin.get_legend_handles_labels()
            handles, names = [*handles, *more[0]], [*names, *more[1]]
    if len(handles) > 1:
        axes.legend(handles, names, fontsize=7, frameon=False)


def _line(axes: Axes, curve: Curve, colour: str, label: str, noisy: bool) -> None:
    """The curve; a long noisy one faintly, with the centred mean over 2 % of its points on top."""
    steps, values = curve
    half = len(values) // 100
    if not noisy or half < 1:
        axes.plot(steps, values, color=colour, linewidth=1.4, label=label, marker="." if len(values) < 30 else None)
        return
    axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
    sums = np.concatenate([np.zeros(1), np.cumsum(values)])
    middle = np.arange(len(values))
    first, last = np.maximum(middle - half, 0), np.minimum(middle + half + 1, len(values))
    axes.plot(steps, (sums[last] - sums[first]) / (last - first), color=colour, linewidth=1.5, label=label)


def _tidy(axes: Axes, right: bool = False) -> None:
    axes.tick_params(which="both", labelsize=7, colors=_GREY)
    for side in ("top",) if right else ("top", "right"):
        axes.spines[side].set_visible(False)
