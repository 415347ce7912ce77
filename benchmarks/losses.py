"""Time and memory of the losses, forward and backward, as we and others compute them.

    python benchmarks/losses.py [--tables NT-Xent ...] [--sizes 64 ...] [--repeats 1001] [--seconds 4] [--add]
    python benchmarks/losses.py --rows "masked cross entropy" --clocks cpu --tables NT-Xent --sizes 64 128 256

The score matrix is N x N, the vectors have 128 dimensions in float32, the temperature is 0.1. The other libraries come
with `pip install 'contrast-learning[bench]'`; one that is not installed is skipped with a line. Every row of a table
gives the same value and the same gradients, which is checked first.

Time: processor time with one thread, and by the clock with two. A repetition is as many calls as take 5 ms. The
repetitions of all losses take turns in one process, and a time is the median over repetitions. Memory: the most that a
process of its own holds during one call, less what it held just before; from N = 512 on. A loss that needs more than
--memory GiB is left out from that size on, and one whose call takes longer than --slowest seconds from the next size
on. Above N = 16,384 ours is measured alone.

Writes results/losses.json and docs/pictures/losses.png. --add keeps what the results have of other tables and sizes.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from loss_functions import DIM, OURS, TABLES, Loss, T, inputs
from loss_memory import call
from tqdm import tqdm
from views import installed, processor

HERE = Path(__file__).resolve().parent
SMALL = (64, 128, 256, 512, 1024, 2048)
SIZES = {
    "NT-Xent": (*SMALL, 4096, 8192, 16384, 32768, 65536),
    "CLIP": (*SMALL, 4096, 8192),
    "SupCon": SMALL,
    "SigLIP": SMALL,
}
REPETITION = 0.005  # seconds, at least
MEMORY_FROM, ALONE_ABOVE = 512, 16384
QUANTITIES = {
    "cpu": ("processor milliseconds, 1 thread", 1e3),
    "wall": ("milliseconds by the clock, 2 threads", 1e3),
    "bytes": ("MiB above the start", 2**-20),
}
CLOCKS: dict[str, tuple[int, Callable[[], float]]] = {"cpu": (1, time.process_time), "wall": (2, time.perf_counter)}

Points = dict[int, dict[str, float]]  # by size: cpu, wall, bytes, and the spread of the times
Table = dict[str, Points]  # by name
Pair = tuple[torch.Tensor, torch.Tensor]


# --- measure


def available(table: str, rows: list[str] | None) -> list[str]:
    """The rows to measure whose library is installed; all of them must give the same value and gradients."""
    values: dict[str, tuple[torch.Tensor, ...]] = {}
    for name, make in TABLES[table].items():
        if rows and name not in (OURS, *rows):
            continue
        z = inputs(table, 256)
        try:
            loss = make(len(z[0]))
        except ImportError as missing:
            print(f"{table}: {name} is skipped: {missing}")
            continue
        value = loss(*z)
        values[name] = (value.detach(), *torch.autograd.grad(value, z))
    for name, each in values.items():
        try:
            torch.testing.assert_close(each, values[OURS], rtol=1e-4, atol=1e-7)
        except AssertionError as wrong:
            raise RuntimeError(f"{table}: {name} is not the same loss as ours: {wrong}") from None
    return list(values)


def measured_alone(table: str, name: str, n: int, memory: float) -> dict[str, float] | None:
    """Peak memory and seconds in a process of its own; None: it needs more than that many GiB."""
    command = [sys.executable, HERE / "loss_memory.py", table, name, str(n), str(memory), "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode > 1 or (done.returncode == 1 and "Error" in done.stderr):
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout) if done.returncode == 0 else None


def measure_memory(table: str, names: list[str], args: argparse.Namespace) -> tuple[Table, dict[int, list[str]]]:
    """Peak memory of each loss, and which losses are small and fast enough to be timed at each size."""
    rows: Table = {name: {} for name in names}
    left, timed = list(names), {}
    progress = tqdm([n for n in SIZES[table] if n in args.sizes], desc=f"{table}, memory", leave=False)
    for n in progress:
        left = [name for name in left if n <= ALONE_ABOVE or name == OURS]
        timed[n] = list(left)
        for name in timed[n] if n >= MEMORY_FROM else ():
            progress.set_postfix_str(f"N = {n:,}: {name}")
            result = measured_alone(table, name, n, args.memory)
            if result is None:
                timed[n].remove(name)
            else:
                rows[name][n] = {"bytes": result["bytes"]}
            if result is None or result["seconds"] > args.slowest:
                left.remove(name)
    return rows, timed


def in_turns(losses: dict[str, Loss], z: Pair, kind: str, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Median seconds of a call of each and their spread, the interquartile range over the median."""
    clock, calls, turns = CLOCKS[kind][1], {}, {}
    times: dict[str, list[float]] = {name: [] for name in losses}
    for name, loss in losses.items():
        first = seconds_of(loss, z, clock, 1)  # it warms up
        once = first if first > 1 else min(seconds_of(loss, z, clock, 1) for _ in range(3))
        calls[name] = math.ceil(REPETITION / max(once, 1e-6))
        turns[name] = min(args.repeats, max(3, int(args.seconds / (calls[name] * once))))
    rounds, names = max(turns.values()), list(losses)
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:  # nobody always follows the same other
            if r * turns[name] % rounds >= turns[name]:
                continue  # the turns of a slow loss are spread over all rounds
            times[name].append(seconds_of(losses[name], z, clock, calls[name]))
    medians = {}
    for name, each in times.items():
        low, middle, high = statistics.quantiles(each, method="inclusive") if len(each) > 1 else each * 3
        medians[name] = {kind: middle, f"{kind}_spread": (high - low) / middle}
    return medians


def seconds_of(loss: Loss, z: Pair, clock: Callable[[], float], calls: int) -> float:
    """Seconds of one call, the mean of several in a row."""
    start = clock()
    for _ in range(calls):
        call(loss, *z)
    return (clock() - start) / calls


def measure(tables: list[str], args: argparse.Namespace) -> dict[str, Table]:
    """All with one thread before any with two, whose waiting threads would count as processor time."""
    torch.set_num_threads(1)
    results, timed = {}, {}
    for table in tables:
        results[table], timed[table] = measure_memory(table, available(table, args.rows), args)
    for kind in args.clocks:
        threads, _ = CLOCKS[kind]
        torch.set_num_threads(threads)
        progress = tqdm([(table, n) for table in tables for n in timed[table]], desc=f"{threads} threads", leave=False)
        for table, n in progress:
            progress.set_postfix_str(f"{table}, N = {n:,}")
            z, others, start = inputs(table, n), worked_for_others(), time.perf_counter()
            losses = {name: TABLES[table][name](len(z[0])) for name in timed[table][n]}
            for name, times in in_turns(losses, z, kind, args).items():
                results[table][name].setdefault(n, {}).update(times)
            share = (worked_for_others() - others) / (time.perf_counter() - start)
            if share > 0.1:
                progress.write(f"{table}, N = {n:,}: other processes used {share:.1f} cores meanwhile")
    return results


def worked_for_others() -> float:
    """Seconds that the cores have worked for other processes since the machine's start."""
    ticks = sum(map(int, Path("/proc/stat").read_text().split()[1:4]))  # user, nice, system
    mine = os.times()
    return ticks / os.sysconf("SC_CLK_TCK") - mine.user - mine.system


# --- what it says


def exponent(points: Points, what: str) -> float:
    """The slope of log(quantity) over log(N), by least squares, from N = 4,096 on."""
    xs, ys = zip(*((math.log(n), math.log(each[what])) for n, each in points.items() if n >= 4096), strict=True)
    return statistics.linear_regression(xs, ys).slope


def goals(tables: dict[str, Table]) -> dict[str, tuple[float, str, float]]:
    """What was measured, whether it should be at least (>=) or at most (<=), and the goal."""
    lines: dict[str, tuple[float, str, float]] = {}

    def ratio(table: str, n: int, what: str, over: str, under: str) -> float | None:
        one, other = (tables.get(table, {}).get(name, {}).get(n, {}).get(what) for name in (over, under))
        return one / other if one and other else None

    def add(line: str, value: float | None, sign: str, goal: float) -> None:
        if value is not None:
            lines[line] = (value, sign, goal)

    for table, n in ((table, n) for table in tables for n in SMALL):
        yardstick = list(TABLES[table])[1]
        for what in CLOCKS:
            add(f"{table}, N = {n:,}: {what}, ours / {yardstick}", ratio(table, n, what, OURS, yardstick), "<=", 1.1)
    for n, what in ((n, what) for n in (8192, 16384) for what in CLOCKS):
        for name, goal in (("lightly", 6), ("masked cross entropy", 3)):
            add(f"NT-Xent, N = {n:,}: {what}, {name} / ours", ratio("NT-Xent", n, what, name, OURS), ">=", goal)
    lightly = ratio("NT-Xent", 16384, "bytes", "lightly", OURS)
    add("NT-Xent, N = 16,384: memory, lightly / ours", lightly, ">=", 40)
    ours = tables.get("NT-Xent", {}).get(OURS, {})
    add("NT-Xent, N = 65,536: GiB above the start", ours.get(65536, {}).get("bytes", 0) / 2**30 or None, "<=", 1)
    for table, what in (("NT-Xent", "wall"), ("NT-Xent", "bytes")):
        large = {n: each for n, each in tables.get(table, {}).get(OURS, {}).items() if n >= 4096 and what in each}
        if len(large) > 1:
            add(f"{table}: exponent of {what}", exponent(large, what), "<=", 2.1 if what == "wall" else 1.1)
    for table in ("NT-Xent", "CLIP"):
        for n, each in tables.get(table, {}).get(OURS, {}).items():
            for what in CLOCKS:
                forced = [
                    tables[table].get(f"ours, {way}", {}).get(n, {}).get(what) for way in ("tiles", "whole matrix")
                ]
                better = min((value for value in forced if value), default=None)
                if better and what in each:
                    line = f"{table}, N = {n:,}: {what}, ours / the better of tiles and whole matrix"
                    add(line, each[what] / better, "<=", 1.1)
    return lines


def show(tables: dict[str, Table]) -> None:
    """The tables in Markdown, and the goals."""
    for table, rows in tables.items():
        sizes = sorted({n for points in rows.values() for n in points})
        for what, (unit, scale) in QUANTITIES.items():
            at = [n for n in sizes if any(what in points.get(n, {}) for points in rows.values())]
            if not at:
                continue
            print(f"\n{table}, {unit}:\n\n| | {' | '.join(f'{n:,}' for n in at)} |\n|---|{'---:|' * len(at)}")
            for name, points in rows.items():
                cells = [points.get(n, {}).get(what) for n in at]
                print(f"| {name} | {' | '.join('' if c is None else three_digits(c * scale) for c in cells)} |")
    print()
    for line, (value, sign, goal) in goals(tables).items():
        met = value <= goal if sign == "<=" else value >= goal
        print(f"{'   ' if met else 'NOT'} {line:80}{value:8.2f} {sign} {goal:g}")


def three_digits(value: float) -> str:
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def draw(tables: dict[str, Table], path: Path) -> None:
    """NT-Xent's time and memory by size, ours in colour and the others grey; ours over the yardstick for all losses.

    The time is by the clock, or processor time where none was taken by the clock.
    """
    figure, axes = plt.subplots(1, 3, figsize=(16, 5.5))
    points = [each for row in tables.get("NT-Xent", {}).values() for each in row.values()]
    time = "wall" if any("wall" in each for each in points) else "cpu"
    for axis, what in zip(axes, (time, "bytes"), strict=False):
        unit, scale = QUANTITIES[what]
        axis.set(xscale="log", yscale="log", xlabel="N views")
        axis.set_title(f"NT-Xent: {unit}", loc="left", fontsize=11)
        ends = []
        for name, points in tables.get("NT-Xent", {}).items():
            values = {n: each[what] * scale for n, each in points.items() if what in each}
            if values and name not in ("ours, tiles", "ours, whole matrix"):
                ours = name == OURS
                colour = "C3" if ours else "0.45"
                axis.plot(values.keys(), values.values(), "o-", color=colour, markersize=3, linewidth=1 + 1.4 * ours)
                ends.append((max(values), list(values.values())[-1], name, colour))
        label(axis, ends)
    axes[2].set(xscale="log", xlabel="N, the side of the score matrix")
    axes[2].set_title("ours / plain implementation, 1 thread", loc="left", fontsize=11)
    axes[2].axhline(1, color="0.6", linewidth=1)
    ends = []
    for number, (table, rows) in enumerate(tables.items()):
        ours, plain = (rows.get(name, {}) for name in list(TABLES[table])[:2])
        ratios = {n: ours[n]["cpu"] / plain[n]["cpu"] for n in sorted(set(ours) & set(plain)) if n <= max(SMALL)}
        if ratios:
            axes[2].plot(ratios.keys(), ratios.values(), "o-", color=f"C{number}", markersize=3)
            ends.append((max(ratios), list(ratios.values())[-1], table, f"C{number}"))
    axes[2].set_ylim(bottom=0)
    label(axes[2], ends)
    for axis in axes:
        sizes = sorted({n for line in axis.lines for n in line.get_xdata() if n > 1})
        axis.set_xticks(sizes, [f"{n:,}" for n in sizes], fontsize=8, rotation=45)
        axis.minorticks_off()
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def label(axis: plt.Axes, ends: list[tuple[int, float, str, str]]) -> None:
    """The name of each line at its end, in points above the last one where two would overlap."""
    if not ends:
        return
    axis.set_xlim(right=axis.get_xlim()[1] * 12)
    lowest: dict[int, float] = {}
    for n, value, name, colour in sorted(ends):
        height = axis.transData.transform((n, value))[1]
        lowest[n] = placed = max(height, lowest.get(n, -math.inf) + 12)
        offset = (8, (placed - height) * 72 / axis.figure.dpi)
        axis.annotate(name, (n, value), offset, textcoords="offset points", color=colour, fontsize=9, va="center")


def merged(now: dict[str, Table], before: dict[str, Any]) -> dict[str, Table]:
    """With the tables and sizes of an earlier run that were not measured now, in order."""
    result: dict[str, Table] = {}
    for table, rows in TABLES.items():
        result[table] = {}
        for name in rows:
            points = {int(n): each for n, each in before.get(table, {}).get(name, {}).items()}
            points |= now.get(table, {}).get(name, {})
            if points:
                result[table][name] = dict(sorted(points.items()))
    return {table: rows for table, rows in result.items() if rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--sizes", type=int, nargs="+", default=sorted({n for sizes in SIZES.values() for n in sizes}))
    parser.add_argument("--rows", nargs="+", help="measure these beside ours; default: all")
    parser.add_argument("--clocks", nargs="+", choices=list(CLOCKS), default=list(CLOCKS))
    parser.add_argument("--repeats", type=int, default=1001, help="repetitions of a loss at one size, at most")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="of a loss at one size; 3 repetitions may take longer"
    )
    parser.add_argument("--memory", type=float, default=10.0, help="GiB that a loss may take")
    parser.add_argument("--slowest", type=float, default=12.0, help="seconds of a call")
    parser.add_argument("--add", action="store_true", help="keep what the results hold of other tables and sizes")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "losses.json")
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs" / "pictures" / "losses.png")
    args = parser.parse_args()
    load = [round(each, 1) for each in os.getloadavg()]
    before = json.loads(args.out.read_text())["tables"] if args.add and args.out.exists() else {}
    tables = merged(measure(args.tables, args), before)
    show(tables)
    packages = ("torch", "lightly", "pytorch-metric-learning", "info-nce-pytorch", "open_clip_torch")
    results: dict[str, Any] = {
        "processor": processor(),
        "load_before": load,
        "python": platform.python_version(),
        "versions": {package: installed(package) for package in packages},
        "setting": {"dimensions": DIM, "temperature": T, "memory_GiB": args.memory, "slowest_s": args.slowest},
        "goals": {line: f"{value:.3g} {sign} {goal:g}" for line, (value, sign, goal) in goals(tables).items()},
        "tables": {
            table: {
                name: {n: {what: float(f"{v:.4g}") for what, v in each.items()} for n, each in points.items()}
                for name, points in rows.items()
            }
            for table, rows in tables.items()
        },
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    draw(tables, args.picture)
    print(f"written to {args.out} and {args.picture}")


if __name__ == "__main__":
    main()
