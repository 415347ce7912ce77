"""What a rank needs of the others: who is there, their rows with an exact gradient, means over all of them."""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(rows: Tensor) -> Tensor:
    """Every rank's rows in order of rank, [N, ...] on each of W ranks -> [W N, ...]; N must be the same everywhere.

    The gradient is the sum over ranks of what they send back to these rows. With each rank's loss a mean over its
    own queries, and the parameter gradients averaged over ranks as DDP does, the result is exactly the gradient of
    the mean over all queries.
    """
    return rows if world_size() == 1 else _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # a column-major gradient would be summed element by element in the wrong places
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


def mean_counted(values: Tensor, counted: Tensor) -> Tensor:
    """This rank's share of the mean of `values` [B] over the queries of all ranks that are `counted` [B] bool.

    Scaled by the world size, since DDP divides by it: the average over ranks is the mean over all counted queries.
    Nobody counted: 0, with a zero gradient.
    """
    total = counted.sum()
    if world_size() > 1:
        dist.all_reduce(total)
    return world_size() * torch.where(counted, values, 0).sum() / total.clamp(min=1)


def log_mean_exp_over_ranks(value: Tensor) -> Tensor:
    """log of the mean over ranks of exp(value), a scalar tensor without gradient, the same on every rank."""
    if world_size() == 1:
        return value
    parts = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(parts, value.contiguous())
    return torch.stack(parts).logsumexp(dim=0) - math.log(world_size())


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
    """Puts the mean over ranks in the place of every gradient; a sparse one stays sparse.

    torch's DistributedDataParallel knows sparse gradients of nn.Embedding alone, and under NCCL none. Here the ranks
    send each other the rows that they have, and not the V rows of a table. Equal on every rank, bit for bit.
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


def gather_unequal(rows: Tensor) -> Tensor:
    """Every rank's rows in order of rank, [N_r, ...] on rank r -> [N_0 + N_1 + ..., ...], without a gradient."""
    number = torch.tensor([len(rows)], device=rows.device)
    numbers = [torch.empty_like(number) for _ in range(world_size())]
    dist.all_gather(numbers, number)
    counts = torch.cat(numbers).tolist()
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
