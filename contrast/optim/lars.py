"""LARS: momentum SGD whose step in every tensor is proportional to the norm of that tensor."""

from collections.abc import Callable
from typing import Any

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

    You et al. divide by |g| + weight_decay * |w| instead. `lr` is inside the velocity, so that a change of the
    learning rate does not rescale the steps already taken. `parameter_groups` sets `adapt: False` and no decay for
    biases and norms. A step never waits for the device. Raises InputError for settings out of range.
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
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._step_group(group, weights)
        return loss

    def _step_group(self, group: dict[str, Any], weights: list[torch.Tensor]) -> None:
        grads = [weight.grad for weight in weights if weight.grad is not None]
        # the first operation copies, so that .grad stays as backward left it
        updates = torch._foreach_add(grads, weights, alpha=group["weight_decay"])
        if group["adapt"]:
            weight_norms = torch.stack(torch._foreach_norm(weights))  # [T], T tensors
            grad_norms = torch.stack(torch._foreach_norm(updates))  # [T]
            ratios = group["trust"] * weight_norms / grad_norms
            ratios = torch.where((weight_norms > 0) & (grad_norms > 0), ratios, 1.0)
            torch._foreach_mul_(updates, list(ratios.unbind()))
        velocities = []
        for weight in weights:
            state = self.state[weight]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(weight)
            velocities.append(state["momentum_buffer"])
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, updates, alpha=group["lr"])
        torch._foreach_sub_(weights, velocities)
