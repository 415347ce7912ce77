"""LARS: SGD with momentum whose step in each tensor is proportional to the norm of that tensor."""

from collections.abc import Callable

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from contrast.errors import InputError


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017) as SimCLR uses it (Chen et al. 2020).

    For every tensor w with gradient g:

        g <- g + weight_decay * w
        r  = trust * |w| / |g|,  and 1 if |w| or |g| is 0 or the group says `adapt: False`
        v <- momentum * v + lr * r * g
        w <- w - v

    momentum      of the velocity v
    weight_decay  of the weights, not of biases and norms
    trust         the length of a step as a share of the length of the tensor, at lr = 1
    adapt         False: plain SGD with momentum

    You et al. divide by |g| + weight_decay * |w| instead. `lr` is part of the velocity v, so that a change of the
    learning rate does not rescale the steps already taken. `parameter_groups` sets `adapt: False` and no decay for
    biases and norms. A step never makes the host wait for the GPU. Raises InputError for settings out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        adapt: bool = True,
    ) -> None:
        for name, value in {"lr": lr, "weight_decay": weight_decay, "trust": trust}.items():
            if value < 0:
                raise InputError(f"LARS takes {name} >= 0, not {value}")
        if not 0 <= momentum < 1:
            raise InputError(f"LARS takes momentum in [0, 1), not {momentum}")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": adapt}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on the gradients as they are, or after `closure` has computed them; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                update = weight.grad.add(weight, alpha=group["weight_decay"])
                if group["adapt"]:
                    weight_norm, update_norm = weight.norm(), update.norm()
                    ratio = group["trust"] * weight_norm / update_norm
                    update.mul_(torch.where((weight_norm > 0) & (update_norm > 0), ratio, 1.0))
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                velocity = state["momentum_buffer"].mul_(group["momentum"]).add_(update, alpha=group["lr"])
                weight.sub_(velocity)
        return loss
