"""Two gloo processes equal one: loss and gradients, whatever the layout of the incoming gradient."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from contrast.distributed import gather, mean_counted
from contrast.heads import InfoNCE, Learnable
from contrast.negatives import InBatch

IMAGES, VIEWS, DIM = 6, 2, 5


def model() -> nn.ModuleDict:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(7, 8), nn.GELU(), nn.Linear(8, DIM)).double()
    return nn.ModuleDict({"encoder": encoder, "head": InfoNCE(Learnable(0.2)).double()})


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = model()

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        z = self.parts["encoder"](x)  # [V, B, 7] -> [V, B, D]
        ((query, candidates),) = InBatch()(z, None, ids)
        losses, counted = self.parts["head"](query, candidates)
        return mean_counted(losses, counted)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(VIEWS, IMAGES, 7, dtype=torch.float64, generator=generator)
    return x, torch.tensor([10, 11, 12, 13, 11, 15])  # 11 is there twice, on different ranks


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def join(rank: int, world: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)


def leave() -> None:
    """Ends this process when all ranks are here, without Python's own end, in which one rank has aborted."""
    dist.barrier()
    os._exit(0)


def ranked_step(rank: int, world: int, port: int, folder: str) -> None:
    join(rank, world, port)
    x, ids = inputs()
    mine = slice(rank * IMAGES // world, (rank + 1) * IMAGES // world)
    step = nn.parallel.DistributedDataParallel(Step())
    loss = step(x[:, mine], ids[mine])
    loss.backward()
    grads = {name: p.grad for name, p in step.module.named_parameters()}
    torch.save({"loss": loss.detach(), "grads": grads}, Path(folder) / f"{rank}.pt")
    leave()


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_equal_one_process(world: int, tmp_path: Path) -> None:
    step = Step()
    loss = step(*inputs())
    loss.backward()
    mp.spawn(ranked_step, (world, free_port(), str(tmp_path)), nprocs=world)
    ranks = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(world)]
    torch.testing.assert_close(sum(r["loss"] for r in ranks) / world, loss.detach())
    for name, parameter in step.named_parameters():
        for r in ranks:
            torch.testing.assert_close(r["grads"][name], parameter.grad)


def ranked_gather(rank: int, world: int, port: int, folder: str) -> None:
    join(rank, world, port)
    x = torch.full((2, 3), float(rank + 1), requires_grad=True)
    y = gather(x)
    # each rank weighs all rows differently, and hands back a column-major gradient
    weights = (torch.arange(12.0).view(3, 4).T + 100 * rank).requires_grad_(False)
    assert not weights.is_contiguous()
    y.backward(weights)
    torch.save({"y": y.detach(), "grad": x.grad}, Path(folder) / f"{rank}.pt")
    uneven = mean_counted(torch.ones(3) * (rank + 1), torch.tensor([True, rank == 0, False]))
    torch.save(uneven, Path(folder) / f"mean{rank}.pt")
    leave()


def test_gather_returns_the_sum_of_what_all_ranks_send_back(tmp_path: Path) -> None:
    mp.spawn(ranked_gather, (2, free_port(), str(tmp_path)), nprocs=2)
    weights = torch.arange(12.0).view(3, 4).T
    total = weights + (weights + 100)
    for rank in range(2):
        saved = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert saved["y"].tolist() == [[1.0] * 3] * 2 + [[2.0] * 3] * 2
        assert torch.equal(saved["grad"], total[2 * rank : 2 * rank + 2])
    # three queries count: two of rank 0 (value 1), one of rank 1 (value 2); DDP averages the two shares
    shares = [torch.load(tmp_path / f"mean{r}.pt", weights_only=True).item() for r in range(2)]
    assert sum(shares) / 2 == pytest.approx((1 + 1 + 2) / 3)


def test_nobody_counted_is_zero() -> None:
    values = torch.randn(3, requires_grad=True)
    loss = mean_counted(values, torch.zeros(3, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert values.grad is not None
    assert values.grad.abs().max() == 0
