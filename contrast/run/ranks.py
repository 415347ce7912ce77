"""When one of several ranks fails, all of them end, and the last line names the cause and the rank."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytorch_lightning as pl
from torch import distributed

from contrast.errors import InputError
from contrast.run.disk import failure
from contrast.run.errors import one_line

PATIENCE = 10.0  # seconds that the other ranks have to end by themselves after one has failed


class Ranks(pl.Callback):
    """Ends all ranks when one fails: a callback of every rank, which trains within the block `together`.

    A rank that fails writes `error_rank<n>.txt` to the run folder: the cause in the first line, then the traceback. A
    rank that has only lost its connection to a failed one prints nothing. The first rank waits for the ranks that it
    has started and reports the cause. If it hangs in a collective and does not notice, a thread does so and ends the
    process.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.started: list[subprocess.Popen] = []  # by the first rank, from rank 1 on
        self.ended = threading.Event()  # set when training has ended: nothing after it is watched

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        processes = getattr(trainer.strategy.launcher, "procs", [])
        if trainer.is_global_zero and all(isinstance(each, subprocess.Popen) for each in processes):
            self.started = list(processes)
            processes.clear()  # Lightning's observer would kill this process before it could report the cause
            threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        while not any(process.poll() for process in self.started):
            if all(process.poll() == 0 for process in self.started):
                return
            if self.ended.wait(0.5):
                return
        if self.ended.wait(3 * PATIENCE):
            return
        print(f"error: {self.cause(self.end(0.0))}", file=sys.stderr, flush=True)
        os._exit(1)

    @contextmanager
    def together(self, trainer: pl.Trainer) -> Iterator[None]:
        """Within this block, an error of any rank ends all; the first rank raises an InputError with the cause."""
        if trainer.world_size == 1:
            yield
            return
        rank = trainer.global_rank
        for old in self.run_dir.glob("error_rank*.txt") if rank == 0 else ():
            old.unlink()
        try:
            yield
        except Exception as error:
            cause = None if has_lost_connection(error) else self.record(error, rank)
            if rank > 0:
                raise (SystemExit(1) if cause is None else InputError(cause)) from error
            statuses = self.end(PATIENCE if cause is None else 0.0)
            raise InputError(self.cause(statuses) if cause is None else f"rank 0: {cause}") from error
        finally:
            if sys.exc_info()[0] is not None:
                self.end(0.0)
            self.ended.set()

    def record(self, error: Exception, rank: int) -> str:
        """Writes `error_rank<n>.txt` of a failed rank and returns the cause."""
        known = failure(error, self.run_dir)
        file = self.run_dir / f"error_rank{rank}.txt"
        cause = known or f"{one_line(f'{type(error).__name__}: {error}')} ({file})"
        with suppress(OSError):  # the disk may be full
            file.write_text(f"{cause}\n\n{traceback.format_exc()}", encoding="utf-8")
        return cause

    def end(self, patience: float) -> dict[int, int]:
        """Ends the other ranks after `patience` seconds; returns the statuses of those that ended by themselves."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and any(process.poll() is None for process in self.started):
            time.sleep(0.1)
        statuses = {rank: process.poll() for rank, process in enumerate(self.started, start=1)}
        for process in self.started:
            process.kill()
            process.wait()
        return {rank: status for rank, status in statuses.items() if status is not None}

    def cause(self, statuses: dict[int, int]) -> str:
        """Why a rank other than the first failed, according to its file or else to its exit status."""
        for file in sorted(self.run_dir.glob("error_rank*.txt"), key=lambda file: file.stat().st_mtime_ns):
            for line in file.read_text(encoding="utf-8").splitlines()[:1]:  # a full disk leaves the file empty
                return f"rank {file.stem.removeprefix('error_rank')}: {line}"
        for rank, status in sorted(statuses.items(), key=lambda each: each[1]):  # signals are negative
            if status < 0:
                return f"rank {rank} was ended by {signal.Signals(-status).name}, which may be for lack of memory"
            if status:
                return f"rank {rank} ended with status {status}"
        return "the connection to another rank is lost"


def has_lost_connection(error: Exception) -> bool:
    """Whether a collective raised this error because other ranks have ended."""
    text = re.search(r"gloo|NCCL|[Cc]onnection (closed|reset)", str(error))
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and text is not None)
