"""`gather=True`: two gloo ranks have the losses and gradients of one process, after the average that DDP takes."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_distributed import free_port, join, leave
from torch import Tensor

from contrast import functional as F

N, D, WORLD = 8, 5, 2
LABELS = torch.tensor([0, 1, 0, 2, 2, 1, 3, 1], dtype=torch.uint8)

# Called with two sets of vectors, a temperature, the rows of this rank, and whether candidates are gathered.
FORMS: dict[str, Callable[[Tensor, Tensor, Tensor, slice, bool], Tensor]] = {
    "nt_xent": lambda a, b, t, rows, gather: F.nt_xent(a, b, t, gather=gather),
    "dcl": lambda a, b, t, rows, gather: F.dcl(a, b, t, gather=gather),
    "sup_con": lambda a, b, t, rows, gather: F.sup_con(a, b, LABELS[rows], t, gather=gather),
    "info_nce": lambda a, b, t, rows, gather: F.info_nce(a, b, temperature=t, gather=gather),
    "clip_loss": lambda a, b, t, rows, gather: F.clip_loss(a, b, t, gather=gather),
    "siglip_loss": lambda a, b, t, rows, gather: F.siglip_loss(a, b, t, bias=-1.0, gather=gather),
    # the negatives of all ranks are shared: here those that each rank makes of its own keys
    "info_nce, negatives": lambda a, b, t, rows, gather: F.info_nce(a, b, b * 2 - 1, temperature=t, gather=gather),
}


def step(name: str, rows: slice, gather: bool) -> list[Tensor]:
    """The loss of these rows, and the gradients of a linear encoder and of the temperature."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, N, 7, dtype=torch.float64, generator=generator)
    weight = torch.randn(7, D, dtype=torch.float64, generator=generator).requires_grad_()
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    loss = FORMS[name](x[0, rows] @ weight, x[1, rows] @ weight, t, rows, gather)
    return [loss.detach(), *torch.autograd.grad(loss, [weight, t])]


def ranked(rank: int, port: int, folder: str) -> None:
    join(rank, WORLD, port)
    results = {}
    for name in FORMS:
        results[name] = step(name, slice(rank * N // WORLD, (rank + 1) * N // WORLD), True)
        for tensor in results[name]:
            dist.all_reduce(tensor)
            tensor /= WORLD  # as DDP does
    torch.save(results, Path(folder) / f"{rank}.pt")
    leave()


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    mp.spawn(ranked, (free_port(), str(tmp_path)), nprocs=WORLD)
    for rank in range(WORLD):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name in FORMS:
            for gather in (False, True):  # in one process there is nothing to gather
                expected = step(name, slice(N), gather)
                torch.testing.assert_close(results[name], expected, msg=lambda text, name=name: f"{name}: {text}")
