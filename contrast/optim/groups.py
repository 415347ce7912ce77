"""Weight decay for matrices and convolution kernels, and none for the other parameters."""

from typing import Any, TypeAlias

from torch import nn

from contrast.errors import InputError

# The norms whose parameters can have several dimensions; those of all other norms have one and need no mention.
NORMS = (nn.LayerNorm, nn.RMSNorm)
Groups: TypeAlias = list[dict[str, Any]]  # of an optimiser


def parameter_groups(module: nn.Module, weight_decay: float | None = None) -> Groups:
    """Parameter groups for an optimiser, which hold every trainable parameter of `module` exactly once.

    The first group decays by `weight_decay`; None leaves the decay to the optimiser's own setting. The second has no
    weight decay and no layer-wise adaptation in LARS. It holds the biases and everything else of at most one dimension
    (scales, a log temperature), the parameters of norm layers, and parameters with the attribute `no_decay = True`
    (class tokens, position embeddings; `copy.deepcopy` drops the attribute). An empty group is left out. Raises
    InputError if nothing is trainable.
    """
    decays: dict[nn.Parameter, bool] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            exempt = name.endswith("bias") or isinstance(part, NORMS) or getattr(parameter, "no_decay", False)
            if parameter.requires_grad:
                decays.setdefault(parameter, parameter.ndim > 1 and not exempt)
    if not decays:
        raise InputError(f"{type(module).__name__} has no trainable parameter")
    groups: Groups = [
        {"params": [each for each in decays if decays[each]]}
        | ({} if weight_decay is None else {"weight_decay": weight_decay}),
        {"params": [each for each in decays if not decays[each]], "weight_decay": 0.0, "adapt": False},
    ]
    return [group for group in groups if group["params"]]
