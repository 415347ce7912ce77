"""What every builder of an encoder ends with: the width it promises, its memory format, its compilation."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeVar

import torch
from torch import nn

from contrast.errors import InputError

Net = TypeVar("Net", bound=nn.Module)


def finish(net: Net, num_features: int, channels_last: bool = False, compile: bool = False) -> Net:
    """`net` with the attribute `num_features`, changed in place; its state dict keeps its keys.

    channels_last  stores convolution weights as NHWC; every convolution then answers in NHWC, whatever it is given
    compile        compiles `net` at its first call. A deepcopy of it (a momentum encoder) is not compiled
    """
    net.num_features = num_features  # type: ignore[assignment]
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
