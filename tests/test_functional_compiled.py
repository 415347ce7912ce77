"""The functions under torch.compile: one graph, and the same values and gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from contrast import functional as F

N, D = 6, 5
LABELS = torch.tensor([0, 1, 0, 2, 1, 0])

FORMS: dict[str, Callable[[Tensor, Tensor, float | Tensor], Tensor]] = {
    "nt_xent": lambda a, b, t: F.nt_xent(a, b, t),
    "dcl": lambda a, b, t: F.dcl(a, b, t),
    "sup_con": lambda a, b, t: F.sup_con(a, b, LABELS, t),
    "info_nce": lambda a, b, t: F.info_nce(a, b, temperature=t),
    "info_nce, negatives": lambda a, b, t: F.info_nce(a, b, b.detach() + 1, temperature=t),
    "clip_loss": lambda a, b, t: F.clip_loss(a, b, t),
    "siglip_loss": lambda a, b, t: F.siglip_loss(a, b, t, bias=-3.0),
}


@pytest.mark.parametrize("of_tensor", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_one_graph_with_the_same_values_and_gradients(name: str, of_tensor: bool) -> None:
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(N, D, generator=generator, requires_grad=True) for _ in range(2))
    t = torch.tensor(0.3, requires_grad=True) if of_tensor else 0.3
    inputs = [a, b, t] if isinstance(t, Tensor) else [a, b]
    compiled = torch.compile(FORMS[name], fullgraph=True, backend="aot_eager")
    losses = [form(a, b, t) for form in (FORMS[name], compiled)]
    grads = [torch.autograd.grad(loss, inputs) for loss in losses]
    torch.testing.assert_close(losses[1], losses[0])
    for got, expected in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(got, expected)
