"""The stages of an encoder from its input to its output, some of which are frozen or learn more slowly."""

from torch import nn

from contrast.errors import InputError
from contrast.optim.groups import Groups

_TRUNK = 0.9  # a module with more than this share of the parameters is what is divided into stages


def stages(net: nn.Module) -> dict[nn.Parameter, int]:
    """The stage of each parameter of `net`, counted from 0 at the input.

    A stage is a part of the smallest module that holds more than nine tenths of the parameters, so a ResNet has a stem
    and 4 stages, and a vision transformer its embedding and its blocks. A norm belongs to the stage before it.
    """
    whole, trunk = _size(net), net
    while inner := [part for part in trunk.children() if _size(part) > _TRUNK * whole and list(part.children())]:
        trunk = inner[0]
    number: dict[nn.Parameter, int] = {}
    for part in trunk.children():
        parameters = list(part.parameters())
        is_norm = all(parameter.ndim <= 1 for parameter in parameters)
        place = max(number.values(), default=0) + (not is_norm or not number)
        number |= dict.fromkeys(parameters, place)
    places, last = {}, 0
    for parameter in net.parameters():  # those outside the trunk belong to the stage before them
        places[parameter] = last = max(last, number.get(parameter, 0))
    first = min(places.values(), default=0)
    return {parameter: place - first for parameter, place in places.items()}


def freeze(net: nn.Module, count: int) -> None:
    """The first `count` stages of `net` no longer learn. InputError if it has fewer than `count`."""
    places = stages(net)
    total = max(places.values(), default=-1) + 1
    if not 0 <= count <= total:
        raise InputError(f"{count} stages cannot be frozen: the encoder has {total}")
    for parameter, place in places.items():
        if place < count:
            parameter.requires_grad_(False)


def layer_wise(groups: Groups, net: nn.Module, lr: float, decay: float) -> Groups:
    """Parameter groups with a learning rate for each stage of `net`.

    Stage i of n has lr * decay^(n - i), and parameters outside `net` have lr (Clark et al. 2020, ELECTRA; Bao et al.
    2022, BEiT). InputError unless 0 < decay <= 1.
    """
    if not 0 < decay <= 1:
        raise InputError(f"learning rates fall from stage to stage by a factor in (0, 1], not {decay}")
    places = stages(net)
    total = max(places.values(), default=-1) + 1
    divided = []
    for group in groups:
        rates: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            rates.setdefault(lr * decay ** (total - places.get(parameter, total)), []).append(parameter)
        divided += [{**group, "params": parameters, "lr": rate} for rate, parameters in rates.items()]
    return divided


def _size(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())
