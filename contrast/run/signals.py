"""Signals that end a run. A run of a single process first completes its current step and saves a checkpoint."""

import os
import signal
import stat
import threading
from pathlib import Path
from types import FrameType

import pytorch_lightning as pl

from contrast.run.folder import resume_command
from contrast.run.whole import newest

NAMES = [name for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)]  # there is no SIGHUP on Windows


class Signals(pl.Callback):
    """Ctrl-C (SIGINT) and a closed terminal (SIGHUP) end training as SIGTERM does, which Lightning handles.

    A second Ctrl-C cuts the current step off. A signal that is ignored, as SIGHUP is under nohup, stays ignored. With
    several ranks, every signal ends all of them at once, and at SIGTERM the first one says how to go on.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.received: signal.Signals | None = None
        self.before: dict[signal.Signals, object] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        if trainer.world_size > 1:
            # Lightning's handler broadcasts from within the signal and deadlocks if a collective is running.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if trainer.is_global_zero:
                self.before[signal.SIGTERM] = signal.SIG_DFL
                self.end_from_a_thread()
            return
        for number in (getattr(signal, name) for name in NAMES):
            if (handler := signal.getsignal(number)) != signal.SIG_IGN:
                self.before[number] = handler
                signal.signal(number, self.handle)

    def end_from_a_thread(self) -> None:
        """SIGTERM wakes a thread, which ends the process also while the main thread is in a collective."""
        arrived, here = os.pipe()
        os.set_blocking(here, False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(here, warn_on_full_buffer=False)

        def wait() -> None:
            while os.read(arrived, 1) != bytes([signal.SIGTERM]):
                pass
            try:
                print(f"ended by SIGTERM: {saved(self.run_dir)}", flush=True)
            finally:
                os._exit(128 + signal.SIGTERM)

        threading.Thread(target=wait, daemon=True).start()

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:  # a closed terminal can send two
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.received = signal.Signals(number)
        _leave_closed_terminal()
        signal.raise_signal(signal.SIGTERM)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.restore()

    def ignore(self) -> None:
        """Ignores Ctrl-C until `restore`, so that an ended run can say what is saved."""
        if threading.current_thread() is threading.main_thread():
            handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
            self.before.setdefault(signal.SIGINT, handler)

    def restore(self) -> None:
        """Restores the former handlers; after an exception it is called only once the step is saved."""
        if signal.SIGTERM in self.before:
            signal.set_wakeup_fd(-1)
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self.before = {}


def _leave_closed_terminal() -> None:
    """Redirects output to the null device if its terminal is closed, since writing to that raises an error."""
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def saved(run_dir: Path) -> str:
    """Which step of an ended run is saved, and the command that goes on from there."""
    last = newest(run_dir)
    return f"step {last[1]} is saved, {resume_command(run_dir)} continues" if last else "no step is saved yet"
