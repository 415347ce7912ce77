"""A contrastive batch on a small device: gradients cached at the projections (Gao et al. 2021, section 3).

Gradient accumulation adds no negatives. Here the batch is embedded in parts without a graph, the loss of the whole
batch and its gradient with respect to queries and keys are computed, and the parts are embedded again, each with a
graph that backpropagates its share of that gradient. This takes the memory of one part and the time of one more forward
pass.

P pairs of views, B images of this rank, D dimensions.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

Others = TypeVar("Others")  # what a loss returns besides its value


class Embedded(NamedTuple):
    """Embeddings of images; the first dimension of queries and keys is the view."""

    embedding: Tensor  # [P, B, F]
    query: Tensor  # [P, B, D]
    key: Tensor | None  # [P, B, D]


def cached_gradients(
    embed: Callable[[int, bool], Embedded],
    parts: int,
    contrast: Callable[[Tensor, Tensor | None], tuple[Tensor, Others]],
    modules: Sequence[nn.Module],
    parameters: Sequence[nn.Parameter],
) -> tuple[Tensor, Others, Embedded]:
    """The loss of a whole batch, what else `contrast` returns, and the embeddings, which have no gradient.

    embed       embed(i, again): part i of the batch; called twice, `again` with the random state of the first call
    contrast    query, key of the whole batch -> (loss, more)
    modules     whose buffers (running statistics) keep the values of the first pass
    parameters  that get a gradient: it is computed here, and `loss.backward()` delivers it once, so that DDP and
                accumulation see one backward pass

    The gradients are those of the whole batch, except where the encoder mixes images: batch norm takes its statistics
    from each part.
    """
    device = next((parameter.device for parameter in parameters), torch.device("cpu"))
    states, embedded = [], []
    with torch.no_grad():
        for i in range(parts):
            states.append(_random_state(device))
            embedded.append(embed(i, False))
    images = [each.query.shape[1] for each in embedded]  # of every part
    query = torch.cat([each.query for each in embedded], dim=1).requires_grad_()  # [P, B, D]
    keys = [each.key for each in embedded if each.key is not None]
    key = torch.cat(keys, dim=1).requires_grad_() if keys else None
    loss, more = contrast(query, key)
    leaves = [query] if key is None else [query, key]
    with torch.autocast(device.type, enabled=False):
        first = torch.autograd.grad(loss, [*leaves, *parameters], allow_unused=True)
    total: list[Tensor | None] = list(first[len(leaves) :])
    torch.clear_autocast_cache()  # older torch keeps weights that the first pass cast, which have no graph
    with torch.random.fork_rng([device] if device.type == "cuda" else []), buffers_kept(modules):
        for i in range(parts):
            _set_random_state(states[i], device)
            again = embed(i, True)
            outputs, grads = [], []
            for output, grad in zip((again.query, again.key)[: len(leaves)], first[: len(leaves)], strict=True):
                if output is not None and grad is not None and output.requires_grad:
                    outputs.append(output)
                    grads.append(grad.split(images, dim=1)[i].to(output.dtype))
            with torch.autocast(device.type, enabled=False):
                shares = torch.autograd.grad(outputs, parameters, grads, allow_unused=True)
            total = [_add(one, share) for one, share in zip(total, shares, strict=True)]
    whole = Embedded(
        torch.cat([each.embedding for each in embedded], dim=1), query.detach(), None if key is None else key.detach()
    )
    return _Deliver.apply(loss.detach(), total, *parameters), more, whole


class _Deliver(torch.autograd.Function):
    """A loss whose gradients with respect to the parameters are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, grads: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.grads = grads
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if each is None else grad * each for each in ctx.grads)


@contextmanager
def buffers_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Restores the buffers of `modules` after this block, whatever it writes into them."""
    kept = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


def _random_state(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def _set_random_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def _add(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other  # not in place: autograd may share a gradient between two parameters


def equal_parts(count: int, most: int) -> list[slice]:
    """`count` rows in parts of at most `most`, whose lengths differ by one at most."""
    parts = -(-count // most)
    ends = [count * i // parts for i in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]
