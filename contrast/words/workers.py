"""Workers that train on parts of a text at the same time, on the same tables and without locks (Recht et al. 2011)."""

import mmap
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn


class Workers:
    """This process and, on Linux, `count - 1` forks of it, which call `work(worker, task)` for one task each.

    The forks share the parameters and buffers of `model`, which are moved to shared memory, and nothing else: what
    `work` changes besides is lost. Threads take their place where forking is not safe, but are slower: between any two
    operations they wait for Python's lock.
    """

    def __init__(self, model: nn.Module, work: Callable[[int, Any], None], count: int) -> None:
        self.work, self.count = work, count
        self.forks: list[tuple[Any, Connection]] = []
        on_cpu = all(tensor.device.type == "cpu" for tensor in (*model.parameters(), *model.buffers()))
        if count > 1 and on_cpu and sys.platform == "linux":
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.data = shared(tensor.data)
            context = multiprocessing.get_context("fork")
            for worker in range(1, count):
                ours, theirs = context.Pipe()
                ends = [ours, *(connection for _, connection in self.forks)]
                process = context.Process(target=serve, args=(work, worker, theirs, ends), daemon=True)
                process.start()
                theirs.close()
                self.forks.append((process, ours))

    def run(self, tasks: Sequence[Any]) -> None:
        """One task for each worker, fewer if there are fewer; returns when all are done.

        Raises what `work` raises here; RuntimeError for an error in another process, with its traceback.
        """
        if len(tasks) > 1 and not self.forks:
            with ThreadPoolExecutor(len(tasks)) as pool:
                list(pool.map(self.work, range(len(tasks)), tasks))
            return
        busy = [connection for _, connection in self.forks[: len(tasks) - 1]]
        try:
            for connection, task in zip(busy, tasks[1:], strict=True):
                connection.send(task)
            self.work(0, tasks[0])
            failed = [error for connection in busy if (error := connection.recv()) is not None]
        except BaseException as error:
            self.close()
            if isinstance(error, EOFError | BrokenPipeError):
                raise RuntimeError(f"one of {self.count} workers was killed: out of memory?") from error
            raise
        if failed:
            self.close()
            raise RuntimeError(f"a worker failed:\n{failed[0]}")

    def close(self) -> None:
        """Ends the forks."""
        for process, connection in self.forks:
            connection.close()
            process.kill()  # it holds nothing that is not shared
            process.join()
        self.forks = []


def shared(tensor: Tensor) -> Tensor:
    """A copy in memory that forks of this process share.

    Without a name, unlike that of `Tensor.share_memory_`, for which /dev/shm is often too small (64 MB under Docker):
    the process would then be killed at the first write beyond.
    """
    if not tensor.numel():
        return tensor
    memory = mmap.mmap(-1, tensor.numel() * tensor.element_size())
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)


def serve(work: Callable[[int, Any], None], worker: int, connection: Connection, ends: Sequence[Connection]) -> None:
    """A fork's life: tasks from the pipe until it is closed, by whatever ended the first process."""
    for name in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group: the first process decides
        signal.signal(name, signal.SIG_IGN)
    for end in ends:
        end.close()
    with suppress(EOFError, OSError):
        while True:
            task = connection.recv()
            try:
                work(worker, task)
                connection.send(None)
            except Exception:
                connection.send(traceback.format_exc())
    os._exit(0)  # nothing of the first process is to be closed or flushed from here
