"""Learning curves as plain values for the page: of one run, or of the jobs of a sweep side by side."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from contrast.report.page import Section
from contrast.run.curves import PANELS, Curve, Panel, drawn, levels
from contrast.run.sweep_report import Job

POINTS = 300  # of a line at most; a longer curve is averaged in so many parts
JOBS = 30  # of a sweep whose curves are drawn
ONE_LINE = ("train/loss", "train/top1", "online/knn_top1", "online/linear_top1", "train/rank_embedding")  # of a sweep


def panels(run_dir: Path) -> Section | None:
    """The plots of a run, one for each panel of `curves.png`."""
    shown, curves, final = drawn(run_dir)
    made = []
    for panel in shown:
        lines = []
        for name, label in panel.lines.items():
            if name in curves:
                trained, untrained = levels(panel, name, final)
                lines.append({**line(label, curves[name]), "trained": trained, "untrained": untrained})
        made.append(plot(panel, lines))
    return section(made)


def sweep_panels(jobs: Sequence[tuple[str, Job]]) -> Section | None:
    """The plots of a sweep: one for each metric in `ONE_LINE`, with a line for each of the first jobs, by its label."""
    curves = [(label, drawn(job.folder)[1]) for label, job in jobs[:JOBS] if job.folder is not None]
    made = []
    for panel in PANELS:
        for name in [name for name in panel.lines if name in ONE_LINE]:
            if lines := [line(label, each[name]) for label, each in curves if name in each]:
                made.append(plot(replace(panel, title=f"{panel.title}: {panel.lines[name]}", is_log=False), lines))
    return section(made, f"The first {JOBS} of {len(jobs)} jobs." if len(jobs) > JOBS else "")


def section(plots: list[Section], note: str = "") -> Section | None:
    return {"kind": "curves", "title": "Training", "panels": plots, "note": note} if plots else None


def plot(panel: Panel, lines: list[dict[str, object]]) -> Section:
    return {"title": panel.title, "unit": panel.unit, "better": panel.better, "log": panel.is_log, "lines": lines}


def line(label: str, curve: Curve) -> dict[str, object]:
    """A curve with its label; of more than `POINTS` points the means of as many parts of equal length."""
    steps, values = curve
    if len(steps) > POINTS:
        steps, values = (np.array([part.mean() for part in np.array_split(x, POINTS)]) for x in curve)
    return {"label": label, "steps": steps.round(1).tolist(), "values": [float(f"{value:.5g}") for value in values]}
