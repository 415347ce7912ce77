"""One call of a loss in a process of its own, for `tiled.py`: the peak memory in bytes and the seconds, as JSON.

python benchmarks/tiled_memory.py TABLE NAME N GIB THREADS
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from tiled_losses import DIM, TABLES, Loss
from torch import Tensor


def inputs(n: int) -> Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(0)).requires_grad_()


def call(loss: Loss, z: Tensor) -> float:
    """Seconds of a forward and a backward pass."""
    z.grad = None
    start = time.perf_counter()
    loss(z).backward()
    return time.perf_counter() - start


def status(name: str) -> int:
    """Bytes, of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise KeyError(name)


def alone(table: str, name: str, n: int, limit: float) -> None:
    """Prints the peak memory in bytes and the seconds of one call."""
    loss, z = TABLES[table][name](), inputs(n)
    call(loss, inputs(64))  # what the libraries load once does not count
    room = status("VmSize") + int(limit * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is held now
    before = status("VmRSS")
    try:
        seconds = call(loss, z)
    except (RuntimeError, MemoryError):  # no room
        sys.exit(1)
    print(json.dumps({"bytes": status("VmHWM") - before, "seconds": seconds}))


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[5]))
    alone(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
