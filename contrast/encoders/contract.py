"""What the package expects of an encoder, and which sizes of images one accepts."""

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from contrast.encoders.pretrained import pretrained
from contrast.errors import InputError, one_line

Net = TypeVar("Net", bound=nn.Module)


class Encoder(Protocol):
    """An `nn.Module` with the attribute `num_features`, as timm's models have it; nothing has to be subclassed.

    Images [B, C, H, W] or token ids [B, L]  ->  features [B, num_features].
    """

    num_features: int

    def __call__(self, inputs: Tensor, /) -> Tensor: ...


def finish(
    net: Net,
    num_features: int,
    channels_last: bool = False,
    compile: bool = False,
    weights: str | Path | None = None,
    prefix: str | None = None,
    frozen: bool = False,
) -> Net:
    """`net` with the attribute `num_features`, changed in place. The keys of its state dict stay the same.

    weights, prefix  the weights to start from, and what their keys start with: `contrast.encoders.pretrained`
    channels_last  stores the weights of convolutions as NHWC; their outputs are then NHWC for inputs of any layout
    frozen         the net does not learn: no gradient, and eval mode in training
    compile        compiles `net` at its first call. A deepcopy of it (a momentum encoder) is not compiled
    """
    net.num_features = num_features  # type: ignore[assignment]
    if weights is not None:
        pretrained(net, weights, prefix)
    if frozen:
        net.eval().requires_grad_(False)  # Lightning leaves the mode of each module as it is
    if channels_last:
        net.to(memory_format=torch.channels_last)
    if compile:
        net.compile()
    return net


def check_name(name: str, known: Iterable[str], kind: str) -> None:
    """InputError with the nearest names if `name` is not one of `known`."""
    known = list(known)
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.4)
        raise InputError(f"no {kind} is called '{name}'; nearest: {', '.join(near or sorted(known)[:5])}")


def check_view_sizes(encoder: nn.Module, in_channels: int, image_size: int, view_sizes: Iterable[int]) -> None:
    """InputError if `encoder` accepts images of `image_size` x `image_size` pixels, but not views of `view_sizes`.

    An encoder that fails the trial at its own size, too, does not run on the meta device, and nothing is known of it.
    """
    for size in sorted(set(view_sizes) - {image_size}):
        reason = size_error(encoder, in_channels, size)
        if reason and not size_error(encoder, in_channels, image_size):
            raise InputError(f"the encoder accepts images of {image_size} pixels, but not views of {size}: {reason}")


def size_error(net: nn.Module, in_channels: int, size: int) -> str | None:
    """Why `net` does not accept images of `size` x `size` pixels, or None if it does.

    The net is called on torch's meta device, which computes shapes and no values. The call takes milliseconds and
    leaves the weights, the statistics of batch norm and the random numbers as they are.
    """
    state = {name: tensor.to("meta") for name, tensor in chain(net.named_parameters(), net.named_buffers())}
    images = torch.empty(2, in_channels, size, size, device="meta")
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            functional_call(net, state, (images,))
    except Exception as error:  # every architecture refuses a size in its own way
        return one_line(error)
    return None
