"""Workers that train on parts of a text at the same time, on the same tables and without locks: Hogwild.

Recht, Re, Wright and Niu 2011.
"""

import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Task = TypeVar("Task")


class Workers(Generic[Task]):
    """This process and, on Linux, `count - 1` forks of it; each calls `work(worker, task)` for one task at a time.

    The forks share the parameters of `model`, which are moved to shared memory, and nothing else: any other change that
    `work` makes in a fork, to a buffer for example, is lost. Threads are used where forking is not safe. They are
    slower, because between any two operations they wait for Python's lock, except in the compiled loop.
    """

    def __init__(self, model: nn.Module, work: Callable[[int, Task], None], count: int) -> None:
        self.work, self.count = work, count
        self.forks: list[tuple[BaseProcess, Connection]] = []
        parameters = list(model.parameters())
        if count == 1 or sys.platform != "linux" or any(each.device.type != "cpu" for each in parameters):
            return
        for parameter in parameters:
            parameter.data = shared(parameter.data)
        context = multiprocessing.get_context("fork")
        for worker in range(1, count):
            ours, theirs = context.Pipe()
            inherited = [ours, *(connection for _, connection in self.forks)]
            process = context.Process(target=serve, args=(work, worker, theirs, inherited), daemon=True)
            process.start()
            theirs.close()
            self.forks.append((process, ours))

    def run(self, tasks: Sequence[Task]) -> None:
        """Runs one task on each worker, or fewer tasks, and returns when all are done.

        Raises what `work` raises in this process, and RuntimeError with the traceback of an error in a fork.
        """
        if len(tasks) > 1 and not self.forks:
            with ThreadPoolExecutor(len(tasks)) as pool:
                list(pool.map(self.work, range(len(tasks)), tasks))
            return
        busy = [connection for _, connection in self.forks[: len(tasks) - 1]]
        try:
            for connection, task in zip(busy, tasks[1:], strict=True):
                connection.send_bytes(pickle.dumps(task))  # torch has `send` share the memory of tensors
            self.work(0, tasks[0])
            failed = [error for connection in busy if (error := connection.recv()) is not None]
            if failed:
                raise RuntimeError(f"a worker failed:\n{failed[0]}")
        except (EOFError, BrokenPipeError) as error:
            self.close()
            raise RuntimeError(f"one of {self.count} workers was killed: out of memory?") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the forks."""
        for process, connection in self.forks:
            connection.close()
            process.kill()  # safe, because all that a fork holds is shared or can be lost
            process.join()
        self.forks = []


def shared(tensor: Tensor) -> Tensor:
    """A copy in memory that this process shares with its forks.

    The memory is anonymous, unlike that of `Tensor.share_memory_`, which is in /dev/shm. That is often too small (64 MB
    under Docker), and the process would be killed when it writes beyond the end.
    """
    if not tensor.numel():
        return tensor
    memory = mmap.mmap(-1, tensor.numel() * tensor.element_size())
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)


def serve(
    work: Callable[[int, Task], None], worker: int, connection: Connection, inherited: Sequence[Connection]
) -> None:
    """The loop of a fork: runs tasks from the pipe until the first process closes it or ends.

    inherited  connections of the first process, which the fork closes, because a pipe ends only with its last owner
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # sent to the whole process group; the first process reacts to them
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    for each in inherited:
        each.close()
    with suppress(EOFError, OSError):
        while True:
            task = pickle.loads(connection.recv_bytes())
            try:
                work(worker, task)
                connection.send(None)
            except Exception:
                connection.send(traceback.format_exc())
    os._exit(0)  # so that nothing that belongs to the first process is closed or flushed
