"""The blocks of a deep net: the parts whose activations can be computed again, and whose weights can be sharded."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from contrast.errors import InputError
from contrast.grad_cache import buffers_kept

T = TypeVar("T")


def blocks(net: nn.Module) -> list[nn.Module]:
    """The residual blocks, transformer layers or stages of `net`, in order.

    They are the innermost modules with parts of their own that stand in an `nn.Sequential` or an `nn.ModuleList`.
    """
    found = []
    for child in net.children():
        if inner := blocks(child):
            found += inner
        elif isinstance(net, nn.Sequential | nn.ModuleList) and any(child.children()):
            found.append(child)
    return found


def checkpoint_activations(net: nn.Module) -> None:
    """Makes each block of `net` keep its input alone, and compute its activations again in the backward pass.

    Loss, gradients and running statistics stay the same, since the second pass draws the same random numbers and leaves
    the buffers as they are. The keys of the state dict stay the same, and a deepcopy works by itself. InputError for a
    net without blocks.
    """
    if not (found := blocks(net)):
        raise InputError(f"activation_checkpointing needs an encoder of blocks, and {type(net).__name__} has none")
    for block in found:  # its bound method, which a deepcopy of the block binds to the copy
        block.forward = partial(_checkpointed, block, block.forward)


def _checkpointed(block: nn.Module, forward: Callable[..., T], *inputs: object, **named: Any) -> T:
    if torch.compiler.is_compiling():  # which writes buffers once, however often it computes activations
        return checkpoint(forward, *inputs, use_reentrant=False, **named)
    contexts = nullcontext(), buffers_kept([block])  # of the first and of the second pass
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=lambda: contexts, **named)


def shard(net: nn.Module, mesh: DeviceMesh) -> None:
    """Gives each rank of `mesh` a part of every weight of `net`, gathered block by block where it is used (FSDP2)."""
    for part in (*blocks(net), net):
        fully_shard(part, mesh=mesh)
