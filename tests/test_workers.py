"""Workers on shared tables: forks, threads where there are none, and what fails in them."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contrast.words.workers import Workers, shared

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(4))
        self.pids = nn.Parameter(torch.zeros(4, dtype=torch.int64), requires_grad=False)

    @torch.no_grad()
    def work(self, worker: int, task: float) -> None:
        if task < 0:
            raise ValueError(f"task {task}")
        if task == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        self.values[worker] += task
        self.pids[worker] = os.getpid()


@pytest.fixture(params=["forks", "threads"])
def workers(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Workers, Counts]]:
    if request.param == "threads":
        monkeypatch.setattr(sys, "platform", "darwin")
    elif sys.platform != "linux":
        pytest.skip("processes are forked on Linux alone")
    model = Counts()
    made = Workers(model, model.work, 3)
    assert len(made.forks) == (2 if request.param == "forks" else 0)
    yield made, model
    made.close()


def values(model: Counts) -> list[float]:
    found: Tensor = model.values.detach()
    return found.tolist()


def test_each_worker_has_its_task_and_all_write_to_the_same_tables(workers: tuple[Workers, Counts]) -> None:
    made, model = workers
    made.run([1.0, 2.0, 3.0])
    made.run([1.0, 2.0, 4.0])
    assert values(model) == [2, 4, 7, 0]
    made.run([5.0])  # a short rest
    assert values(model) == [7, 4, 7, 0]
    assert len(set(model.pids[:3].tolist())) == (3 if made.forks else 1)


@ON_LINUX
def test_shared_memory_does_not_come_from_dev_shm() -> None:
    """A table of any size, a scalar and nothing at all."""
    before = os.statvfs("/dev/shm").f_bavail
    for value in (torch.randn(3_000_000), torch.tensor(2.5), torch.zeros(0, 4), torch.tensor([[True], [False]])):
        copy = shared(value)
        assert torch.equal(copy, value)
        assert copy.dtype == value.dtype
        assert os.statvfs("/dev/shm").f_bavail >= before - 1000


def test_one_worker_needs_no_process() -> None:
    model = Counts()
    where = model.values.data_ptr()
    made = Workers(model, model.work, 1)
    made.run([2.0])
    assert values(model) == [2, 0, 0, 0]
    assert not made.forks
    assert model.values.data_ptr() == where  # not moved to shared memory


@ON_LINUX
@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        ([1.0, -2.0, 1.0], RuntimeError, "(?s)a worker failed:.*in work.*ValueError: task -2.0"),
        ([-1.0, 1.0, 1.0], ValueError, "task -1.0"),
        ([1.0, 1.0, 13.0], RuntimeError, "one of 3 workers was killed"),
    ],
)
def test_what_fails_in_a_worker_fails_here_and_ends_the_others(
    tasks: list[float], error: type[Exception], message: str
) -> None:
    model = Counts()
    made = Workers(model, model.work, 3)
    processes = [process for process, _ in made.forks]
    with pytest.raises(error, match=message):
        made.run(tasks)
    assert not made.forks
    assert not any(process.is_alive() for process in processes)


@ON_LINUX
def test_forks_end_with_the_first_process() -> None:
    """Killed, it can tell them nothing: their pipes end."""
    reading, writing = os.pipe()
    first = os.fork()
    if not first:
        model = Counts()
        made = Workers(model, model.work, 3)
        made.run([1.0, 1.0, 1.0])
        os.write(writing, ",".join(map(str, model.pids[1:3].tolist())).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(first, 0)
    forks = [int(pid) for pid in os.read(reading, 100).decode().split(",")]
    assert len(forks) == 2
    deadline = time.monotonic() + 20
    while any(map(runs, forks)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, forks))


def runs(pid: int) -> bool:
    """Whether a process is there, and not only waited for."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
