"""One call of a loss in a process of its own, for `losses.py`: the peak memory in bytes and the seconds, as JSON.

python benchmarks/loss_memory.py TABLE NAME N GIB THREADS
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from loss_functions import TABLES, Loss, inputs
from torch import Tensor


def call(loss: Loss, z1: Tensor, z2: Tensor) -> None:
    """A forward and a backward pass."""
    z1.grad = z2.grad = None
    loss(z1, z2).backward()


def status(name: str) -> int:
    """Bytes, of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise KeyError(name)


def alone(table: str, name: str, n: int, limit: float) -> None:
    """Prints the peak memory in bytes above what was held before, and the seconds of one call."""
    make, pair, small = TABLES[table][name], inputs(table, n), inputs(table, 64)
    loss = make(len(pair[0]))
    call(make(len(small[0])), *small)  # what the libraries load once does not count
    room = status("VmSize") + int(limit * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is held now
    before, start = status("VmRSS"), time.perf_counter()
    try:
        call(loss, *pair)
    except (RuntimeError, MemoryError):  # no room
        sys.exit(1)
    print(json.dumps({"bytes": status("VmHWM") - before, "seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[5]))
    alone(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
