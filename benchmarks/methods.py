"""The methods of conf/method/ side by side on the digits: a table and their learning curves, from a finished sweep.

    contrast-pretrain -m 'method=glob(*,exclude=[crd,seed])' seed=0,1,2,3,4 launcher=joblib logger=none \\
        callbacks.online_knn.every_n_epochs=5 callbacks.online_linear.every_n_epochs=5 hydra.sweep.dir=runs/methods
    python benchmarks/methods.py runs/methods

Prints the table of docs/methods.md, writes results/methods.json and docs/pictures/methods.png. A figure is the mean
over the seeds and the half width of its 95 % interval; the curves are means of the online kNN, which votes on held-out
training images. Methods that are in the file already and not in the sweep keep their results. The picture is drawn when
the file has the curves of all its methods. method=seed,crd need ++key.weights=RUN and projector.out_features=256 in a
sweep of their own.
"""

import argparse
import json
import platform
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from views import installed, processor

from contrast.run.metrics import read_rows
from contrast.run.sweep_report import COMPLETE, Job, estimate, read_jobs

HERE = Path(__file__).resolve().parent
LABELLED = {  # what they learn from besides the images: the other methods see no label and no caption
    **dict.fromkeys(["supcon", "full_softmax", "cosface", "arcface", "l_softmax"], "labels"),
    **dict.fromkeys(["clip", "siglip"], "captions"),
    **dict.fromkeys(["seed", "crd"], "a teacher"),
}
OTHER_TARGETS = ("swav", "dino", "ressl", "byol", "simsiam", "barlow_twins", "vicreg")
FIGURES = {
    "knn_top1": "kNN",
    "linear_top1": "linear",
    "linear_10_per_class_top1": "linear, 10 labels a class",
    "image_to_text_recall1": "captions for images, recall@1",
}


def by_method(jobs: list[Job]) -> dict[str, list[Job]]:
    found: dict[str, dict[str, Job]] = defaultdict(dict)
    for job in jobs:
        if job.status == COMPLETE:
            found[job.swept["method"]][job.swept["seed"]] = job  # of a seed that ran twice the later
    return {method: list(seeds.values()) for method, seeds in found.items()}


def figures(jobs: list[Job]) -> dict[str, dict[str, float]]:
    """Of one method: mean, half width of the 95 % interval and number of seeds of each figure it has."""
    told = {}
    for name in FIGURES:
        values = [job.metrics[name] for job in jobs if name in job.metrics]
        if values:
            found = estimate(values)
            told[name] = {"mean": round(found.mean, 4), "half": round(found.half, 4), "n": found.n}
    return told


def curve(jobs: list[Job]) -> tuple[list[int], list[float]]:
    """Epochs, and the mean over seeds of the online kNN after them."""
    at = defaultdict(list)
    for job in jobs:
        assert job.folder is not None
        for row in read_rows(job.folder / "metrics.jsonl"):
            if row.get("online/knn_top1"):
                at[int(row["epoch"]) + 1].append(float(row["online/knn_top1"]))
    return sorted(at), [statistics.fmean(at[epoch]) for epoch in sorted(at)]


def draw(curves: dict[str, tuple[list[int], list[float]]], path: Path) -> None:
    """Three panels: methods with plain negatives, other methods that see images alone, and those that see more."""
    panels: dict[str, list[str]] = {"images alone, negatives": [], "images alone, soft targets or no negatives": []}
    panels["with labels, captions or a teacher"] = []
    for name in curves:
        panels[list(panels)[2 if name in LABELLED else name in OTHER_TARGETS]].append(name)
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), sharey=True, constrained_layout=True)
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        lines = {name: curves[name] for name in names}
        for number, name in enumerate(sorted(names, key=lambda name: -lines[name][1][-1])):
            epochs, values = lines[name]
            style = ("-", "--")[number // 5]
            axis.plot(epochs, values, style, color=f"C{number % 5}", label=f"{name}  {values[-1]:.3f}", linewidth=1.6)
        axis.set(title=title, xlabel="epoch", ylim=(0.8, 1.0))
        axis.grid(alpha=0.25)
        axis.legend(loc="lower right", fontsize=8, title="after the last epoch", title_fontsize=8)
    axes[0].set_ylabel("kNN top-1 on held-out training images")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def cell(found: dict[str, float] | None) -> str:
    if found is None:
        return ""
    return f"{found['mean']:.4f} ± {found['half']:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, nargs="+", help="a folder of the sweep, or the folders of its parts")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "methods.json")
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs" / "pictures" / "methods.png")
    args = parser.parse_args()
    methods = by_method([job for folder in args.sweep for job in read_jobs(folder)])
    before = json.loads(args.out.read_text()) if args.out.is_file() else {}
    told: dict[str, Any] = before.get("methods", {}) | {name: figures(jobs) for name, jobs in methods.items()}
    curves = before.get("curves", {}) | {name: curve(jobs) for name, jobs in methods.items()}
    print("| method | sees | " + " | ".join(FIGURES.values()) + " |\n" + "|---" * (len(FIGURES) + 2) + "|")
    for name, found in sorted(told.items(), key=lambda item: (LABELLED.get(item[0], ""), -item[1]["knn_top1"]["mean"])):
        cells = [cell(found.get(figure)) for figure in FIGURES]
        print(f"| `{name}` | {LABELLED.get(name, 'images')} | " + " | ".join(cells) + " |")
    facts = {"processor": processor(), "python": platform.python_version(), "torch": torch.__version__}
    facts["pytorch-lightning"] = installed("pytorch-lightning")
    args.out.write_text(json.dumps({"versions": facts, "methods": told, "curves": curves}, indent=2) + "\n")
    if missing := sorted(set(told) - set(curves)):
        print(f"written to {args.out}; there is no new picture without the curves of {', '.join(missing)}")
        return
    draw(curves, args.picture)
    print(f"written to {args.out} and {args.picture}")


if __name__ == "__main__":
    main()
