"""docs/extend.md is true: its files train as it says, and its loss is large-batch without a line more."""

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import TINY, figures
from test_distributed import free_port, join, leave
from torch import Tensor

import contrast
from contrast.distributed import mean_counted
from contrast.heads import Head
from contrast.losses import plan as plans
from contrast.losses import scores
from contrast.negatives import InBatch

DOC = Path(contrast.__file__).parents[1] / "docs" / "extend.md"


def documented() -> dict[str, str]:
    """The files of the page by name."""
    files = re.findall(r"`(my/[\w/.]+)`[^`]*?\n```(?:python|yaml)\n(.*?)```", DOC.read_text(), flags=re.S)
    assert {name for name, _ in files} == {
        *("my/hinge.py", "my/head/hinge.yaml", "my/hard.py", "my/negatives/hard.yaml")
    }
    return dict(files)


def hinge() -> type[Head]:
    names: dict[str, type[Head]] = {}
    exec(documented()["my/hinge.py"], names)
    return names["Hinge"]


def naive(z: Tensor, ids: list[int], temperature: float, slack: float) -> Tensor:
    """The mean of the loss as the page describes it, in loops."""
    unit = z / z.norm(dim=1, keepdim=True)
    scores, losses = unit @ unit.T / temperature, []
    for i, own in enumerate(ids):
        positive = torch.stack([scores[i, j] for j in range(len(ids)) if j != i and ids[j] == own]).mean()
        negative = [scores[i, j] for j in range(len(ids)) if ids[j] != own]
        violating = [slack + s - positive for s in negative if slack + s > positive]
        losses.append(sum(violating) / max(1, len(violating)) + 0 * positive)
    return torch.stack(losses).mean()


def test_the_loss_in_blocks_is_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(2, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = naive(z.flatten(0, 1), [*range(9), *range(9)], 0.5, 0.5)
    ((query, candidates),) = InBatch()(z, None, torch.arange(9))
    for block in (10**6, 4 * 18):  # one matrix, four queries at a time
        monkeypatch.setattr(plans, "MIN_SCORES_BLOCKS", block)
        monkeypatch.setattr(scores, "MIN_SCORES_BLOCKS", block)
        losses, counted = hinge()(0.5, slack=0.5).double()(query, candidates)
        assert counted.all()
        torch.testing.assert_close(losses.mean(), expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(x, z, retain_graph=True)[0] for x in (losses.mean(), expected))
        )


def step(rows: slice, ring: bool) -> list[Tensor]:
    """The loss of these images and its gradient, in blocks of two queries."""
    x = torch.randn(2, 8, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    ((query, candidates),) = InBatch(ring)(x[:, rows] @ weight, None, torch.arange(8)[rows])
    with mock.patch.object(plans, "MIN_SCORES_BLOCKS", 32), mock.patch.object(scores, "MIN_SCORES_BLOCKS", 32):
        loss = mean_counted(*hinge()(0.5).double()(query, candidates))
    return [loss.detach(), *torch.autograd.grad(loss, weight)]


def ranked(rank: int, port: int, folder: str) -> None:
    join(rank, 2, port)
    results = [step(slice(4 * rank, 4 * rank + 4), ring) for ring in (False, True)]
    for result in results:
        for tensor in result:
            dist.all_reduce(tensor)
            tensor /= 2  # as DDP does
    torch.save(results, Path(folder) / f"{rank}.pt")
    leave()


@pytest.mark.slow
def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    mp.spawn(ranked, (free_port(), str(tmp_path)), nprocs=2)
    for rank in range(2):
        for result in torch.load(tmp_path / f"{rank}.pt", weights_only=True):
            torch.testing.assert_close(result, step(slice(8), False))


LARGE = """
import re, sys, time
import torch
from contrast.negatives import InBatch

def high_water_mark():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 2**20  # GiB

names = {}
exec(open(sys.argv[1]).read(), names)
z = torch.randn(2, 32768, 128, requires_grad=True)
z.grad = torch.zeros_like(z)
((query, candidates),) = InBatch()(z, None, torch.arange(32768))
before, start = high_water_mark(), time.perf_counter()
names["Hinge"]()(query, candidates)[0].mean().backward()
assert z.grad.abs().max() > 0
print(high_water_mark() - before, time.perf_counter() - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_65536_views_within_1_GiB(tmp_path: Path) -> None:
    (tmp_path / "hinge.py").write_text(documented()["my/hinge.py"])
    (tmp_path / "large.py").write_text(LARGE)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "large.py"), str(tmp_path / "hinge.py")],
        capture_output=True,
        text=True,
        check=True,
    )
    memory, _ = map(float, done.stdout.split())
    assert memory < 1


@pytest.mark.slow
def test_the_worked_examples_train(workplace: Path) -> None:
    for name, content in documented().items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)
    (command,) = re.findall(r"^PYTHONPATH=my contrast-pretrain (.*)$", DOC.read_text(), flags=re.M)
    script = DOC.parents[1] / "scripts" / "pretrain.py"
    done = subprocess.run(
        [sys.executable, str(script), *command.split(), *TINY, "hydra.run.dir=run"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": "my", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert 0 < figures("run")["loss"] < 1
    saved = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert saved["config"]["head"]["_target_"] == "hinge.Hinge"
    assert saved["config"]["negatives"] == {"_target_": "hard.Hard", "k": 64, "skip": 32}
