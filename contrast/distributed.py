"""Communication between ranks: rank and world size, gathering rows with an exact gradient, means over all ranks."""

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from contrast.errors import InputError


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def check_equal(what: str, value: object) -> None:
    """Raises InputError on all ranks if `value` is not the same on all of them."""
    if world_size() == 1:
        return
    values: list[object] = [None] * world_size()
    dist.all_gather_object(values, value)
    if others := [number for number, each in enumerate(values) if each != values[0]]:
        raise InputError(f"{what}: rank {others[0]} has {values[others[0]]}, and rank 0 has {values[0]}")


def gather(rows: Tensor) -> Tensor:
    """Every rank's rows in order of rank, [N, ...] on each of W ranks -> [W N, ...]; N must be the same everywhere.

    The gradient of this rank's rows is the sum of their gradients from the losses of all ranks. If each rank's loss is
    the mean over its own queries, and parameter gradients are averaged over ranks as DDP does, the result is exactly
    the gradient of the mean over all queries.
    """
    return rows if world_size() == 1 else _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        # a column-major gradient would be summed element by element in the wrong places
        total = sum_over_ranks(grads[0].contiguous())
        return total.chunk(world_size())[rank()]


def mean_counted(values: Tensor, counted: Tensor) -> Tensor:
    """This rank's share of the mean of `values` [B] over the queries of all ranks that are `counted` [B] bool.

    Scaled by the world size, since DDP divides by it: the average over ranks is the mean over all counted queries.
    If no query is counted, it is 0, with a zero gradient.
    """
    total = sum_over_ranks(counted.sum())
    return world_size() * torch.where(counted, values, 0).sum() / total.clamp(min=1)


def log_mean_exp_over_ranks(value: Tensor) -> Tensor:
    """log of the mean over ranks of exp(value), a scalar tensor without gradient, the same on every rank."""
    if world_size() == 1:
        return value
    return gather(value.detach()[None]).logsumexp(dim=0) - math.log(world_size())


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean over ranks of a tensor without gradient, the same on every rank."""
    return sum_over_ranks(value) / world_size()


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum over ranks of a tensor without gradient, the same on every rank."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over ranks; a sparse gradient stays sparse.

    torch's DistributedDataParallel supports sparse gradients of nn.Embedding only, and under NCCL none. Here the ranks
    exchange only the rows that have a gradient, not all V rows of a table. The result is the same on every rank, bit
    for bit.
    """
    if world_size() == 1:
        return
    for parameter in parameters:
        grad = parameter.grad
        if grad is not None and grad.is_sparse:
            grad = grad.coalesce()
            ids, rows = gather_unequal(grad.indices()[0]), gather_unequal(grad.values())
            parameter.grad = torch.sparse_coo_tensor(ids[None], rows / world_size(), grad.shape).coalesce()
        elif grad is not None:
            dist.all_reduce(grad)
            grad /= world_size()


@torch.no_grad()
def gather_unequal(rows: Tensor) -> Tensor:
    """Every rank's rows in order of rank, [N_r, ...] on rank r -> [N_0 + N_1 + ..., ...], without a gradient."""
    counts = gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    padded = rows.new_zeros(1, max(counts), *rows.shape[1:])
    padded[0, : len(rows)] = rows
    return torch.cat([part[:count] for part, count in zip(gather(padded), counts, strict=True)])
