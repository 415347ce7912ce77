"""Time and memory of NT-Xent on a CUDA device, forward and backward, by the fused kernels and as others compute it.

    python benchmarks/tiled_gpu.py [--sizes 4096 ...] [--dims 128 256 512] [--memory 0.9]

N views of N / 2 images in D dimensions, bfloat16, T = 0.1. TFLOP/s count 4 N^2 D, what a symmetric loss takes that
computes each tile above the diagonal once in each pass: ours takes 6 N^2 D, and gets no more for it. A share is of the
rate of a bfloat16 product of [8192, 8192] matrices, measured in the same run. Memory is the most that is allocated
during a call, less what was before, inputs included. Medians of rounds in which all take turns. A loss is left out from
the size on where it does not fit into --memory of the device or a call takes longer than 20 seconds.

`pip install cut-cross-entropy inf-cl` for their rows: who is not installed is skipped with a line. They have no own
column to leave out: z asks the same views in the order of their partners, so that there is one candidate more. The
first as installed: it skips what it holds too small to count in gradients. Ours and the plain forms give the same
number, which is checked first. Writes results/tiled_gpu.json and docs/pictures/tiled_gpu.png.
"""

import argparse
import json
import math
import platform
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from views import installed

from contrast.errors import InputError
from contrast.heads import InfoNCE
from contrast.losses.tiled.triton import can_run
from contrast.negatives import InBatch

HERE = Path(__file__).resolve().parent
T = 0.1
SIZES = tuple(2**power for power in range(12, 21, 2))  # 4,096 to 1,048,576
DIMS = (128, 256, 512)
SLOWEST = 20.0  # seconds of a call
SIDE = 8192  # of the matrices whose product is the yardstick
KERNELS = "ours, kernels"
DENSE = ("ours, whole matrix", "masked cross entropy", "the same, torch.compile")

Loss = Callable[[Tensor], Tensor]  # of z [N, D]: the first half are one view of the images, the second the other
Figures = dict[str, dict[int, dict[str, float]]]  # by name and size


def ours(tiled: bool, device: torch.device) -> Loss:
    source, head = InBatch(), InfoNCE(T, tiled=tiled).to(device)

    def loss(z: Tensor) -> Tensor:
        views = z.view(2, -1, z.shape[1])
        ((query, candidates),) = source(views, None, torch.arange(views.shape[1], device=device))
        if tiled and not can_run(query, candidates, has_margin=False):
            raise InputError(f"the kernels do not run on {torch.cuda.get_device_name(device)}: they need triton")
        return head(query, candidates)[0].mean()

    return loss


def masked_cross_entropy(z: Tensor) -> Tensor:
    z = F.normalize(z.float())
    scores = (z.bfloat16() @ z.bfloat16().T).float() / T  # [N, D] x [D, N] -> [N, N]
    scores = scores.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)
    return F.cross_entropy(scores, torch.arange(len(z), device=z.device).roll(len(z) // 2))


def against_partners(theirs: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """Of queries z / T and candidates z, row i of which is the partner of query i."""

    def loss(z: Tensor) -> Tensor:
        z = F.normalize(z.float())
        return theirs((z / T).bfloat16(), z.roll(len(z) // 2, 0).bfloat16())

    return loss


def cut_cross_entropy() -> Loss:
    from cut_cross_entropy import linear_cross_entropy

    return against_partners(lambda q, k: linear_cross_entropy(q, k, torch.arange(len(q), device=q.device)))


def inf_cl() -> Loss:
    from inf_cl import cal_flash_loss

    return against_partners(lambda q, k: cal_flash_loss(q, k, head_dim=min(256, q.shape[1])))


def losses(device: torch.device) -> dict[str, Loss]:
    """Those that are installed."""
    found: dict[str, Loss] = {KERNELS: ours(True, device)}
    found |= dict(
        zip(DENSE, (ours(False, device), masked_cross_entropy, torch.compile(masked_cross_entropy)), strict=True)
    )
    for name, make in {"cut-cross-entropy": cut_cross_entropy, "Inf-CL": inf_cl}.items():
        try:
            found[name] = make()
        except ImportError:
            print(f"{name} is not installed: skipped")
    return found


def inputs(n: int, dim: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(n, dim, generator=generator, device=device).bfloat16().requires_grad_()


def seconds(call: Callable[[], Any]) -> float:
    """By the device's clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def call(loss: Loss, z: Tensor) -> None:
    z.grad = None
    loss(z).backward()


def product_rate(device: torch.device) -> float:
    """FLOP/s of a product of bfloat16."""
    a, b = (torch.randn(SIDE, SIDE, device=device).bfloat16() for _ in range(2))
    for _ in range(5):
        a @ b
    return 2 * SIDE**3 / statistics.median(seconds(lambda: a @ b) for _ in range(20))


def alone(loss: Loss, z: Tensor) -> dict[str, float] | None:
    """Bytes and seconds of a call after another, which compiles and tunes; None: no room, or too slow."""
    try:
        call(loss, z)
        z.grad = None
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        took = seconds(partial(call, loss, z))
    except torch.cuda.OutOfMemoryError:
        z.grad = None
        torch.cuda.empty_cache()
        return None
    found = {"bytes": float(torch.cuda.max_memory_allocated() - before), "seconds": took}
    return found if took <= SLOWEST else None


def measure(dim: int, sizes: list[int], rate: float, device: torch.device) -> Figures:
    left = losses(device)
    told = {name: left[name](inputs(2048, dim, device)).item() for name in (KERNELS, *DENSE)}
    if not all(math.isclose(value, told[KERNELS], rel_tol=2e-3) for value in told.values()):
        raise RuntimeError(f"not the same loss at D = {dim}: {told}")
    found: Figures = {name: {} for name in left}
    for n in (progress := tqdm(sizes, desc=f"D = {dim}", leave=False)):
        z = inputs(n, dim, device)
        for name in list(left):
            progress.set_postfix_str(f"N = {n}: {name}")
            once = alone(left[name], z)
            if once is None:
                del left[name]  # and from here on
            else:
                found[name][n] = once
        total = sum(found[name][n]["seconds"] for name in left)
        rounds = max(3, min(21, int(10 / max(total, 1e-3))))
        calls = {name: partial(call, loss, z) for name, loss in left.items()}
        times = [{name: seconds(each) for name, each in calls.items()} for _ in range(rounds)]
        for name in left:
            took = statistics.median(each[name] for each in times)
            flops = 4 * n * n * dim / took
            found[name][n] |= {"seconds": took, "TFLOP/s": flops / 1e12, "share": flops / rate}
    return found


def show(dim: int, found: Figures, sizes: list[int]) -> None:
    columns = (("seconds", "ms", 1e3), ("TFLOP/s", "TFLOP/s", 1.0), ("share", "% of a product", 100.0))
    for what, unit, scale in (*columns, ("bytes", "MiB", 2**-20)):
        print(f"\n{f'D = {dim}, {unit}':28}" + "".join(f"{n:>12,}" for n in sizes))
        for name, points in found.items():
            cells = [f"{points[n][what] * scale:12,.2f}" if n in points else f"{'-':>12}" for n in sizes]
            print(f"{name:28}" + "".join(cells))


def draw(tables: dict[int, Figures], path: Path) -> None:
    figure, axes = plt.subplots(2, len(tables), figsize=(4.5 * len(tables), 7), squeeze=False, constrained_layout=True)
    for column, (dim, found) in enumerate(tables.items()):
        units = (("share", "% of the rate of a product", 100.0), ("bytes", "MiB", 2**-20))
        for axis, (what, unit, scale) in zip(axes[:, column], units, strict=True):
            for number, (name, points) in enumerate(found.items()):
                style = "osD^vX"[number] + ("-" if name == KERNELS else "--")
                axis.plot(list(points), [each[what] * scale for each in points.values()], style, label=name)
            axis.set(ylabel=unit, xlabel="N views")
            axis.set_xscale("log", base=2)
            axis.grid(alpha=0.3)
        axes[0, column].set(title=f"NT-Xent, D = {dim}", ylim=(0, None))
        axes[1, column].set_yscale("log")
    axes[0, 0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--dims", type=int, nargs="+", default=list(DIMS))
    parser.add_argument("--memory", type=float, default=0.9, help="share of the device's memory that a loss may take")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "tiled_gpu.json")
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs" / "pictures" / "tiled_gpu.png")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise InputError(f"needs a CUDA device, and torch {torch.__version__} sees none")
    device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.set_per_process_memory_fraction(args.memory, device)
    rate = product_rate(device)
    print(f"{torch.cuda.get_device_name(device)}: {rate / 1e12:.0f} TFLOP/s in a product of bfloat16")
    tables = {dim: measure(dim, args.sizes, rate, device) for dim in args.dims}
    for dim, found in tables.items():
        show(dim, found, args.sizes)
    results = {
        "device": torch.cuda.get_device_name(device),
        "product_TFLOP/s": round(rate / 1e12, 1),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in ("torch", "triton", "cut-cross-entropy", "inf-cl")},
        "setting": {"temperature": T, "dtype": "bfloat16", "memory": args.memory},
        "tables": {
            dim: {
                name: {n: {k: float(f"{v:.4g}") for k, v in each.items()} for n, each in points.items()}
                for name, points in found.items()
            }
            for dim, found in tables.items()
        },
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=2) + "\n")
    draw(tables, args.picture)
    print(f"\nwritten to {args.out} and {args.picture}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
