"""Time and memory of NT-Xent and of CLIP's loss, forward and backward, tile by tile and as others compute them.

    python benchmarks/tiled.py [--sizes 512 1024 ...] [--threads 2] [--memory 10] [--add] [--slowest 12]

N views of N / 2 images in D = 128 dimensions, T = 0.1; of two towers N / 2 pairs. Needs `pip install lightly
pytorch-metric-learning info-nce-pytorch open_clip_torch` for their rows: who is not installed is skipped with a line.
Every loss gives the same number, which is checked first.

Memory: the most that a process of its own holds during one call, less what it held just before, with the inputs. Time:
all take turns in one process, round after round; a figure is the median round. A loss is left out from the size on
where it needs more than --memory GiB. One whose call in the process of its own takes longer than --slowest seconds is
not called again, and left out from the next size on. Writes results/tiled.json and docs/pictures/tiled.png; with --add
beside the sizes that are there.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from tiled_losses import DENSE, DIM, TABLES, TILED, Loss, T
from tiled_memory import call, inputs
from tqdm import tqdm
from views import installed, processor

from contrast.heads.tiles import WORTH

HERE = Path(__file__).resolve().parent
SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
UNITS = (("seconds", "milliseconds", 1e3), ("bytes", "MiB above the start", 2**-20))

Points = dict[int, dict[str, float]]  # by size: seconds, bytes
Table = dict[str, Points]  # by name


def measured_alone(table: str, name: str, n: int, args: argparse.Namespace) -> dict[str, float] | None:
    command = [sys.executable, HERE / "tiled_memory.py", table, name, str(n), str(args.memory), str(args.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode > 1 or (done.returncode == 1 and "Error" in done.stderr):
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout) if done.returncode == 0 else None


# --- a table


def measure(table: str, args: argparse.Namespace) -> Table:
    losses = {}
    for name, make in TABLES[table].items():
        try:
            losses[name] = make()
        except ImportError as missing:
            print(f"{name} is skipped: {missing}")
    values = {name: loss(inputs(512)).item() for name, loss in losses.items()}
    wrong = {name: value for name, value in values.items() if not math.isclose(value, values[TILED], rel_tol=1e-4)}
    if wrong:
        raise RuntimeError(f"not the same loss as {values[TILED]}: {wrong}")
    found: Table = {name: {} for name in losses}
    progress = tqdm(args.sizes, desc=table, leave=False)
    for n in progress:
        for name in list(losses):
            progress.set_postfix_str(f"N = {n}: {name}")
            told = measured_alone(table, name, n, args)
            if told is not None:
                found[name][n] = told
            if told is None or told["seconds"] > args.slowest:
                del losses[name]
        progress.set_postfix_str(f"N = {n}: in turns")
        for name, seconds in in_turns(losses, n).items():
            found[name][n]["seconds"] = seconds
    return found


def in_turns(losses: dict[str, Loss], n: int) -> dict[str, float]:
    """Median seconds of each; a first round warms up, unless rounds are long.

    Short rounds are done again while others have the cores: of four attempts the one with the least of that counts.
    """
    if not losses:
        return {}
    z = inputs(n)
    first = {name: call(loss, z) for name, loss in losses.items()}
    once, found = sum(first.values()), []
    while not found or (found[-1][0] > 0.05 and once < 4 and len(found) < 4):
        times, start, others = [first] if once > 10 else [], time.perf_counter(), worked_for_others()
        while len(times) < max(3, min(51, int(10 / once))):
            times.append({name: call(loss, z) for name, loss in losses.items()})
        share = (worked_for_others() - others) / (time.perf_counter() - start) / torch.get_num_threads()
        found.append((share, {name: statistics.median(each[name] for each in times) for name in losses}))
    share, medians = min(found, key=lambda each: each[0])
    if share > 0.05:
        print(f"N = {n:,}: other processes had {share:.0%} of the cores meanwhile")
    return medians


def worked_for_others() -> float:
    """Seconds that the cores have worked for other processes since the machine's start."""
    ticks = sum(map(int, Path("/proc/stat").read_text().split()[1:4]))  # user, nice, system
    mine = os.times()
    return ticks / os.sysconf("SC_CLK_TCK") - mine.user - mine.system


# --- what it says


def exponent(points: Points, what: str) -> float:
    """The slope of log(figure) over log(N), by least squares, from N = 4,096 on."""
    xs, ys = zip(*((math.log(n), math.log(each[what])) for n, each in points.items() if n >= 4096), strict=True)
    return statistics.linear_regression(xs, ys).slope


def goals(table: str, found: Table) -> dict[str, float]:
    """Ratios that this loss was written for, as far as they were measured."""
    tiled, dense, told = found[TILED], found[DENSE], {}
    for name in list(found)[1:]:
        if 16384 in found[name] and 16384 in tiled:
            told[f"N = 16,384: time of {name} / ours"] = found[name][16384]["seconds"] / tiled[16384]["seconds"]
            told[f"N = 16,384: memory of {name} / ours"] = found[name][16384]["bytes"] / tiled[16384]["bytes"]
    if 65536 in tiled:
        told["N = 65,536: GiB above the start"] = tiled[65536]["bytes"] / 2**30
    if sum(n >= 4096 for n in tiled) > 1:
        told |= {f"exponent of {what}": exponent(tiled, what) for what, _, _ in UNITS}
    for n in sorted(set(dense) & set(tiled)):
        scores = n * n if table == "NT-Xent" else n * n // 4
        chosen, other = (tiled[n], dense[n]) if scores >= WORTH else (dense[n], tiled[n])
        told[f"N = {n:,}: time of {DENSE} / {TILED}"] = dense[n]["seconds"] / tiled[n]["seconds"]
        told[f"N = {n:,}: time of the automatic choice / the better"] = max(1, chosen["seconds"] / other["seconds"])
    return told


def show(table: str, found: Table) -> None:
    sizes = sorted({n for points in found.values() for n in points})
    for what, unit, scale in UNITS:
        print(f"\n{table + ', ' + unit:36}" + "".join(f"{n:>10,}" for n in sizes))
        for name, points in found.items():
            cells = [f"{points[n][what] * scale:10,.1f}" if n in points else f"{'-':>10}" for n in sizes]
            print(f"{name:36}" + "".join(cells))
    print()
    for line, value in goals(table, found).items():
        print(f"{table}: {line:70}{value:8.2f}")


def draw(tables: dict[str, Table], path: Path) -> None:
    """Lines with their names beside them: ours in colour, the others grey."""
    figure, axes = plt.subplots(2, len(tables), figsize=(12.5, 9.5), sharex=True, sharey="row", squeeze=False)
    for column, (table, found) in enumerate(tables.items()):
        for axis, (what, unit, scale) in zip(axes[:, column], UNITS, strict=True):
            axis.set(xscale="log", yscale="log", xlim=(450, 65536 * 9))
            ends = []
            for name, points in found.items():
                colour = {TILED: "C3", DENSE: "C0"}.get(name, "0.45")
                values = [each[what] * scale for each in points.values()]
                width = 2.4 if name == TILED else 1.2
                axis.plot(list(points), values, "o-", color=colour, markersize=3.5, linewidth=width)
                ends.append((values[-1], max(points), name, colour))
            figures = [
                each[what] * scale for one in tables.values() for points in one.values() for each in points.values()
            ]
            apart = (max(figures) / min(figures)) ** 0.05  # labels of a column, at least
            lowest: dict[int, float] = {}
            for value, n, name, colour in sorted(ends):
                lowest[n] = height = max(value, lowest.get(n, 0) * apart)
                weight = "bold" if name == TILED else "normal"
                axis.annotate(
                    name, (n, value), (n * 1.25, height), color=colour, fontsize=9, va="center", weight=weight,
                    arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.4},
                )  # fmt: skip
            ticks = sorted({n for one in tables.values() for points in one.values() for n in points})
            axis.set_xticks(ticks, [f"{n:,}" for n in ticks], fontsize=8)
            axis.minorticks_off()
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_title(f"{table}: {unit}", loc="left", fontsize=11)
        axes[1, column].set_xlabel("N views" if table == "NT-Xent" else "N = images + texts")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def merged(tables: dict[str, Table], before: dict[str, Any]) -> dict[str, Table]:
    """With the sizes of an earlier run that were not measured now, in order."""
    found: dict[str, Table] = {}
    for table in TABLES:
        there = before.get(table, {})
        found[table] = {}
        for name in TABLES[table]:
            points = {int(n): each for n, each in there.get(name, {}).items()} | tables.get(table, {}).get(name, {})
            if points:
                found[table][name] = dict(sorted(points.items()))
    return {table: each for table, each in found.items() if each}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", type=float, default=10.0, help="GiB that a loss may take")
    parser.add_argument("--slowest", type=float, default=12.0, help="seconds of a call")
    parser.add_argument("--add", action="store_true", help="keep what the results hold of other sizes")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "tiled.json")
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs" / "pictures" / "tiled.png")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load = [round(each, 1) for each in os.getloadavg()]
    before = json.loads(args.out.read_text())["tables"] if args.add and args.out.exists() else {}
    tables = merged({table: measure(table, args) for table in args.tables}, before)
    for table, found in tables.items():
        show(table, found)
    packages = ("torch", "lightly", "pytorch-metric-learning", "info-nce-pytorch", "open_clip_torch")
    results: dict[str, Any] = {
        "processor": processor(),
        "threads": args.threads,
        "load_before": load,
        "python": platform.python_version(),
        "versions": {package: installed(package) for package in packages},
        "setting": {"dimensions": DIM, "temperature": T, "memory_GiB": args.memory, "slowest_s": args.slowest},
        "goals": {table: {k: round(v, 3) for k, v in goals(table, found).items()} for table, found in tables.items()},
        "tables": {
            table: {
                name: {n: {k: float(f"{v:.4g}") for k, v in each.items()} for n, each in points.items()}
                for name, points in found.items()
            }
            for table, found in tables.items()
        },
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    draw(tables, args.picture)
    print(f"written to {args.out} and {args.picture}")


if __name__ == "__main__":
    main()
