"""The approximations of the softmax side by side: held-out perplexity of a next-word model against seconds of training.

    contrast-words -m experiment=language_model \\
        output=full_softmax,nce,sampled_softmax,negative_sampling,hierarchical_softmax,adaptive_softmax \\
        data=corpus data.path=TEXT data.min_count=1 data.max_words=10000,50000,200000 data.held_out=0.02 \\
        trainer.max_epochs=100 callbacks.held_out.max_seconds=60 callbacks.held_out.first=1 \\
        callbacks.held_out.growth=1.6 callbacks.held_out.most=2000 logger=none hydra.sweep.dir=runs/softmax
    python benchmarks/softmax.py runs/softmax

Prints the tables of docs/softmax-approximations.md, writes softmax.json and softmax.png; those of that page are in
results/ and docs/pictures/.
"""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from omegaconf import OmegaConf
from sklearn.isotonic import isotonic_regression
from views import installed, processor

from contrast.run.metrics import read_rows
from contrast.run.sweep_report import COMPLETE, Job, read_jobs

HEADS = {
    "full_softmax": "full softmax",
    "sampled_softmax": "sampled softmax",
    "nce": "NCE",
    "negative_sampling": "negative sampling",
    "hierarchical_softmax": "hierarchical softmax",
    "adaptive_softmax": "adaptive softmax",
}
WITH_LOG_Q = "negative sampling + log q"  # a second line of the same runs
UNIGRAM = "frequencies alone"
FIGURES = ("perplexity", "perplexity_with_log_q", "log_z", "log_z_std", "unigram_perplexity", "words_per_second")


def named(size: int) -> str:
    """A vocabulary; 0 is that of a text of which all words are kept."""
    return f"{size:,} words" if size else "all words"


def config(job: Job) -> Any:
    assert job.folder is not None
    return OmegaConf.load(job.folder / "config.yaml")


def curve(job: Job) -> dict[str, list[float]]:
    """Seconds of training, the words seen in them, and the held-out figures after them."""
    assert job.folder is not None
    rows = [row for row in read_rows(job.folder / "metrics.jsonl") if "held_out/perplexity" in row]
    names = {"seconds": "train/seconds", "words": "train/words", "perplexity": "held_out/perplexity"}
    names |= {name: f"held_out/{name}" for name in ("perplexity_with_log_q", "unigram_perplexity")}
    there = {name: column for name, column in names.items() if rows and column in rows[0]}
    return {name: [round(float(row[column]), 2) for row in rows] for name, column in there.items()}


def told(job: Job) -> dict[str, Any]:
    """Figures of a run and its curve, rounded."""
    found: dict[str, Any] = {name: round(job.metrics[name], 3) for name in FIGURES if name in job.metrics}
    found |= {"seconds": round(job.metrics["seconds"], 1), "held_out_words": int(job.metrics["held_out_words"])}
    found["words"] = round(job.metrics["words_per_second"] * job.metrics["seconds"])
    found["curve"] = curve(job)
    return found


def lines(heads: dict[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    """What is drawn of one vocabulary, by label."""
    found = {}
    for head, label in HEADS.items():
        if head in heads:
            drawn = heads[head]["curve"]
            found[label] = (drawn["seconds"], drawn["perplexity"])
            if "perplexity_with_log_q" in drawn:
                found[WITH_LOG_Q] = (drawn["seconds"], drawn["perplexity_with_log_q"])
    return found


def apart(heights: list[float], gap: float) -> list[float]:
    """The heights, rising, moved so that they are `gap` apart, by the least squares of their moves."""
    steps = gap * np.arange(len(heights))
    return list(isotonic_regression(np.array(heights) - steps) + steps)


def draw(by_size: dict[int, dict[str, Any]], path: Path) -> None:
    """A panel for each vocabulary, both axes logarithmic, every line named at its end."""
    colours = {label: f"C{number}" for number, label in enumerate([*HEADS.values(), WITH_LOG_Q])}
    figure, axes = plt.subplots(
        1, len(by_size), figsize=(5 * len(by_size), 5.2), constrained_layout=True, squeeze=False
    )
    for axis, (size, heads) in zip(axes[0], sorted(by_size.items()), strict=True):
        shown = lines(heads)
        unigram = next(iter(heads.values()))["curve"].get("unigram_perplexity", [])  # of the words of the curves
        last = max(seconds[-1] for seconds, _ in shown.values())
        for label, (seconds, values) in shown.items():
            style = "--" if label == WITH_LOG_Q else "-"
            axis.plot(seconds, values, style + "o", color=colours[label], markersize=3, linewidth=1.6)
        if unigram:
            shown[UNIGRAM] = ([1, last], unigram[:1] * 2)
            axis.plot(*shown[UNIGRAM], color="0.5", linewidth=1, linestyle=":")
        axis.set(xscale="log", yscale="log", title=named(size), xlabel="seconds of training")
        low, high = (torch.tensor(value).log().item() for value in axis.get_ylim())
        ends = sorted((torch.tensor(values[-1]).log().item(), label) for label, (_, values) in shown.items())
        for (_, label), height in zip(ends, apart([end for end, _ in ends], (high - low) / 26), strict=True):
            text, colour = f" {label}  {shown[label][1][-1]:,.0f}", colours.get(label, "0.4")
            axis.text(last * 1.08, torch.tensor(height).exp().item(), text, color=colour, fontsize=8, va="center")
        axis.set_xlim(right=last * 40)
        axis.set_ylim(bottom=torch.tensor(low - 0.05 * (high - low)).exp().item())
        axis.grid(alpha=0.25, which="both")
        ticks = [second for second in (1, 2, 5, 10, 20, 50, 100, 200) if second <= last * 1.05]
        axis.set_xticks(ticks, [str(second) for second in ticks])
        axis.minorticks_off()
        marks = [
            v
            for v in (50, 70, 100, 150, 200, 300, 500, 700, 1000, 2000, 5000, 10000)
            if low < torch.tensor(v).log() < high
        ]
        axis.set_yticks(marks, [f"{mark:,}" for mark in marks])
    axes[0][0].set_ylabel("perplexity of held-out text, exactly normalised")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def table(by_size: dict[int, dict[str, Any]]) -> str:
    """Perplexity after the training, words per second, and how self-normalised the scores are."""
    sizes = sorted(by_size)
    heading = ["output layer", *map(named, sizes), *(f"words/s with {named(size)}" for size in sizes)]
    rows = [heading, ["---"] * len(heading)]
    for head, label in HEADS.items():
        found = [by_size[size].get(head) for size in sizes]
        if any(found):
            rows.append([label, *(f"{each['perplexity']:,.0f}" if each else "" for each in found)])
            rows[-1] += [f"{each['words_per_second']:,.0f}" if each else "" for each in found]
        if any(each and "perplexity_with_log_q" in each for each in found):
            rows.append([WITH_LOG_Q, *(f"{each['perplexity_with_log_q']:,.0f}" if each else "" for each in found)])
            rows[-1] += [""] * len(sizes)
    unigram = [next(iter(by_size[size].values()))["unigram_perplexity"] for size in sizes]
    rows.append([UNIGRAM, *(f"{value:,.0f}" for value in unigram), *[""] * len(sizes)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def by_words(by_size: dict[int, dict[str, Any]]) -> str:
    """Perplexity after the words that the slowest read in its time: what a word teaches, whatever it costs.

    Of the curves, between two measures linear in the logarithms.
    """
    least = {
        size: min(found["curve"]["words"][-1] for found in heads.values()) for size, heads in sorted(by_size.items())
    }
    rows = [["output layer", *(f"{named(size)}, after {words:,.0f}" for size, words in least.items())]]
    rows.append(["---"] * len(rows[0]))
    for label in [*HEADS.values(), WITH_LOG_Q]:
        cells = []
        for size, words in least.items():
            name = "perplexity_with_log_q" if label == WITH_LOG_Q else "perplexity"
            head = next(head for head in HEADS if HEADS[head] == label.removesuffix(" + log q"))
            drawn = by_size[size][head]["curve"] if head in by_size[size] else {}
            at = np.interp(np.log(words), np.log(drawn["words"]), np.log(drawn[name])) if name in drawn else None
            cells.append("" if at is None else f"{np.exp(at):,.0f}")
        rows.append([label, *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, nargs="+", help="a folder of the sweep, or the folders of its parts")
    parser.add_argument("--out", type=Path, help="by default softmax.json in the first folder")
    parser.add_argument("--picture", type=Path, help="by default softmax.png in the first folder")
    args = parser.parse_args()
    out, picture = args.out or args.sweep[0] / "softmax.json", args.picture or args.sweep[0] / "softmax.png"
    by_size: dict[int, dict[str, Any]] = {}
    for job in (job for folder in args.sweep for job in read_jobs(folder)):
        if job.status == COMPLETE and "perplexity" in job.metrics and job.swept.get("output") in HEADS:
            by_size.setdefault(int(config(job).data.max_words or 0), {})[job.swept["output"]] = told(job)
    if not by_size:
        raise SystemExit(f"no complete job of a language model with output= swept in {', '.join(map(str, args.sweep))}")
    print(f"{table(by_size)}\n\n{by_words(by_size)}\n")
    for size, heads in sorted(by_size.items()):
        for head, found in heads.items():
            if "log_z" in found:
                print(f"log Z of {HEADS[head]} with {named(size)}: {found['log_z']:.2f} ± {found['log_z_std']:.2f}")
    facts = {"processor": processor(), "python": platform.python_version(), "torch": torch.__version__}
    facts |= {"pytorch-lightning": installed("pytorch-lightning"), "threads": str(torch.get_num_threads())}
    out.write_text(json.dumps({"versions": facts, "vocabularies": by_size}, indent=2) + "\n")
    draw(by_size, picture)
    print(f"written to {out} and {picture}")


if __name__ == "__main__":
    main()
