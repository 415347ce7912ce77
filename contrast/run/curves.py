"""`curves.png`: the course of a run at a glance, drawn from its `metrics.jsonl`."""

import gc
import os
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pytorch_lightning.utilities import rank_zero_only

from contrast.atomic import replacing
from contrast.run.folder import read_metrics, title_of
from contrast.run.metrics import FILE, RunLog, read_rows


@dataclass(frozen=True)
class Panel:
    """One plot: `lines` are logged metrics with their labels.

    `final` names the metric of metrics.json that belongs to a line: a star for the trained encoder's, a dashed line
    for the untrained one's. `better` is HIGHER, LOWER, or empty where neither is better.
    """

    title: str
    unit: str
    lines: dict[str, str]
    better: str = ""
    final: dict[str, str] = field(default_factory=dict)
    is_log: bool = False


HIGHER, LOWER = "higher is better", "lower is better"
PROBES = {"online/knn_top1": "knn_top1", "online/linear_top1": "linear_top1"}
PANELS = (
    Panel("Loss", "nats", {"train/loss": "loss"}, LOWER),
    Panel("Bound on the information", "nats", {"train/bound": "log candidates - loss"}, HIGHER),
    Panel("Contrastive top-1", "fraction of queries", {"train/top1": "positive ranked first"}, HIGHER),
    Panel("Frozen features", "top-1 accuracy", dict(zip(PROBES, ("kNN", "linear probe"), strict=True)), HIGHER, PROBES),
    Panel("Scores", "mean score", {"train/positive_score": "positives", "train/negative_score": "negatives"}),
    Panel("Alignment", "alignment", {"train/alignment": "alignment"}, LOWER),
    Panel("Uniformity", "uniformity", {"train/uniformity": "uniformity"}, LOWER),
    Panel(
        "Effective rank",
        "dimensions",
        {"train/rank_embedding": "embedding", "train/rank_projection": "projection"},
        HIGHER,
    ),
    Panel("Temperature", "temperature", {"train/temperature": "temperature"}),
    Panel("Learning rate", "learning rate", {"train/lr": "learning rate"}),
    Panel("Gradient norm", "L2 norm", {"train/grad_norm": "gradient norm"}, is_log=True),
    Panel("Speed", "images / second", {"train/images_per_second": "speed"}, HIGHER),
)

EVERY = 60.0  # the least number of seconds between two pictures while a run trains
SHARE = 0.01  # the largest share of the run's time that drawing may take

_COLOURS = ("#2f6db3", "#d9722e")
_GREY = "#666666"
Curve = tuple[np.ndarray, np.ndarray]  # steps, values


class CurvesLog(RunLog):
    """A Lightning logger that draws `curves.png` again every minute, from the rows that `MetricsLog` has written.

    It draws less often where a picture takes more than 1 % of the time.
    """

    name = "curves"

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.run_dir, self.due = run_dir, perf_counter() + EVERY

    @rank_zero_only
    def log_metrics(self, metrics: object, step: int | None = None) -> None:
        start = perf_counter()
        if start >= self.due:
            save_curves(self.run_dir)
            gc.collect()  # a picture leaves 2 MB in cycles, which Python would keep for many minutes
            end = perf_counter()
            self.due = end + max(EVERY, (end - start) / SHARE)


def save_curves(run_dir: str | os.PathLike[str]) -> Path | None:
    """Draws `<run_dir>/curves.png` and returns its path; None, and no file, while there is nothing to draw."""
    figure, path = figure_of(Path(run_dir)), Path(run_dir) / "curves.png"
    if figure is None:
        return None
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return path


def figure_of(run_dir: Path) -> Figure | None:
    """The panels that have a logged metric, with the results in `metrics.json`; None if there is no such panel."""
    shown, curves, final = drawn(run_dir)
    if not shown:
        return None
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    # without pyplot, which would keep the figure, and choose a window system, for the whole process
    figure = Figure(figsize=(4.6 * columns, 3.3 * rows + 0.5), layout="constrained")
    figure.suptitle(f"{title_of(run_dir)}\n{run_dir.absolute().name}".strip(), fontsize=11)
    for place, panel in enumerate(shown, start=1):
        _draw(figure.add_subplot(rows, columns, place), panel, curves, final)
    return figure


def drawn(run_dir: Path) -> tuple[list[Panel], dict[str, Curve], dict[str, float]]:
    """The panels of which the run has logged metrics, its curves, and the results on the test set."""
    curves = read_curves(run_dir / FILE) if (run_dir / FILE).is_file() else {}
    return [panel for panel in PANELS if curves.keys() & panel.lines], curves, read_metrics(run_dir)


def read_curves(path: Path) -> dict[str, Curve]:
    """metric -> (steps [n], values [n]) of a `metrics.jsonl`, the steps at which it was logged as a finite number."""
    rows = read_rows(path)
    curves = {}
    for name in dict.fromkeys(name for row in rows for name in row if name not in ("step", "epoch")):
        points = np.array([(row["step"], row[name]) for row in rows if name in row])  # [n, 2]
        points = points[np.isfinite(points).all(axis=1)]
        if len(points):
            curves[name] = points[:, 0], points[:, 1]
    return curves


def levels(panel: Panel, name: str, final: dict[str, float]) -> tuple[float | None, float | None]:
    """The results on the test set that belong to a line: of the trained and of the untrained encoder."""
    metric = panel.final.get(name, "")
    return final.get(metric), final.get(f"untrained_{metric}")


def _draw(axes: Axes, panel: Panel, curves: dict[str, Curve], final: dict[str, float]) -> None:
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_title(panel.better, fontsize=8, loc="right", color=_GREY)
    axes.set(xlabel="optimiser step", ylabel=panel.unit)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.margins(x=0.02)
    axes.tick_params(which="both", labelsize=7, colors=_GREY)
    axes.spines[["top", "right"]].set_visible(False)
    lines = {name: label for name, label in panel.lines.items() if name in curves}
    for colour, (name, label) in zip(_COLOURS, lines.items(), strict=False):
        _line(axes, curves[name], colour, label)
        trained, untrained = levels(panel, name, final)
        if untrained is not None:
            axes.axhline(untrained, color=colour, linewidth=1, linestyle="--", label=f"{label}, untrained, test set")
        if trained is not None:
            axes.plot(curves[name][0][-1:], [trained], "*", color=colour, label=f"{label}, test set")
    if panel.is_log and all((curves[name][1] > 0).all() for name in lines):
        axes.set_yscale("log")
    if len(axes.get_legend_handles_labels()[0]) > 1:  # below the axes, where it covers nothing
        axes.legend(fontsize=7, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))


def _line(axes: Axes, curve: Curve, colour: str, label: str) -> None:
    """The curve; one of 100 points or more faintly, with the centred mean over 2 % of its points on top."""
    steps, values = curve
    half = len(values) // 100
    if half < 1:
        axes.plot(steps, values, color=colour, linewidth=1.4, label=label, marker="." if len(values) < 30 else None)
        return
    axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
    window = np.ones(2 * half + 1)
    means = np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
    axes.plot(steps, means, color=colour, linewidth=1.5, label=label)
