"""Tiles across ranks: gathered or in a ring, 2 and 4 gloo processes equal one with the whole matrix, with gradients."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_distributed import free_port, join, leave
from torch import Tensor, nn

from contrast.distributed import mean_counted
from contrast.errors import InputError
from contrast.heads import NCE, InfoNCE, Learnable, LearnedBias
from contrast.negatives import InBatch, Paired, Source

IMAGES = 8


class Case(NamedTuple):
    source: Callable[[bool], Source]  # called with `ring`
    head: Callable[[bool], nn.Module]  # called with `tiled`
    ids: tuple[int, ...] = tuple(range(IMAGES))
    rings: bool = True


CASES = {
    "NT-Xent": Case(lambda ring: InBatch(ring), lambda tiled: InfoNCE(Learnable(0.2), tiled=tiled)),
    "hard negatives": Case(
        lambda ring: InBatch(ring), lambda tiled: InfoNCE(Learnable(0.2), class_prior=0.1, hardness=1.0, tiled=tiled)
    ),
    "cold": Case(lambda ring: InBatch(ring), lambda tiled: InfoNCE(Learnable(0.011), tiled=tiled)),  # no common shift
    "CLIP": Case(lambda ring: Paired(True, ring), lambda tiled: InfoNCE(Learnable(0.2), tiled=tiled)),
    "SigLIP": Case(
        lambda ring: Paired(ring=ring), lambda tiled: NCE(Learnable(0.2), bias=LearnedBias(-1.0), tiled=tiled)
    ),
    # positives on other ranks, and with 4 ranks one without any: all have to take part in every exchange
    "SupCon": Case(
        lambda ring: InBatch(), lambda tiled: InfoNCE(Learnable(0.2), tiled=tiled), (0, 1, 0, 1, 2, 2, 3, 4), False
    ),
    "one view each": Case(
        lambda ring: Paired(), lambda tiled: InfoNCE(Learnable(0.2), tiled=tiled), (5, 5, 6, 7, 8, 9, 10, 11), False
    ),
}


def step(case: Case, tiled: bool, ring: bool, part: slice) -> tuple[Tensor, list[Tensor | None]]:
    """This rank's loss and the gradients of encoder and head; the images of `part` are this rank's."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"encoder": nn.Linear(7, 5), "head": case.head(tiled)}).double()
    x = torch.randn(2, IMAGES, 7, dtype=torch.float64)
    z = model["encoder"](x[:, part])
    asked = case.source(ring)(z, z.flip(0), torch.tensor(case.ids)[part])
    losses, counted = map(torch.cat, zip(*(model["head"](query, found) for query, found in asked), strict=True))
    loss = mean_counted(losses, counted)
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in model.parameters()]


def ranked(rank: int, world: int, port: int, folder: str) -> None:
    join(rank, world, port)
    part = slice(rank * IMAGES // world, (rank + 1) * IMAGES // world)
    found = {}
    for name, case in CASES.items():
        for ring in (False, True)[: 1 + case.rings]:
            loss, grads = step(case, True, ring, part)
            for tensor in (loss, *grads):
                dist.all_reduce(tensor)
                tensor /= world  # as DDP does
            found[f"{name}, {ring}"] = [loss, *grads]
    elsewhere = Case(lambda ring: InBatch(ring), lambda tiled: InfoNCE(0.2, tiled=tiled), CASES["SupCon"].ids)
    with pytest.raises(InputError, match="positives are on other ranks than their query"):
        step(elsewhere, True, True, slice(2 * (rank % 2), 2 * (rank % 2) + 2))
    torch.save(found, Path(folder) / f"{rank}.pt")
    leave()


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_equal_one_process_with_the_whole_matrix(world: int, tmp_path: Path) -> None:
    mp.spawn(ranked, (world, free_port(), str(tmp_path)), nprocs=world)
    everything = {name: step(case, False, False, slice(IMAGES)) for name, case in CASES.items()}
    for rank in range(world):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(found) == sum(1 + case.rings for case in CASES.values())
        for name, told in found.items():
            loss, grads = everything[name.rpartition(", ")[0]]
            torch.testing.assert_close(told, [loss, *grads], msg=lambda text, name=name: f"{name}: {text}")
