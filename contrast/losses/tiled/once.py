"""Backward passes that are not differentiated again: an error there, never a wrong number."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import function

Backward = Callable[..., tuple[Tensor | None, ...]]


def once_differentiable(backward: Backward) -> Backward:
    """As torch's, which takes the gradients for constants, without a word, where those that come in are constants."""
    guarded = function.once_differentiable(backward)

    def guard(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # with create_graph=True
            grads = tuple(
                None if grad is None else grad.detach().requires_grad_(grad.is_floating_point()) for grad in grads
            )
        return guarded(ctx, *grads)

    return guard
