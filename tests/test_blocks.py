"""Activation checkpointing: the same losses, gradients and statistics with fewer saved activations."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from contrast.encoders import conv_net, resnet, timm_model, vit
from contrast.encoders.blocks import blocks, checkpoint_activations
from contrast.errors import InputError

ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: vit(image_size=8, patch_size=4, dropout=0.1),
    "resnet": lambda: resnet("resnet18", image_size=8, zero_init_residual=False),
    "timm's vit": lambda: timm_model("vit_tiny_patch16_224", image_size=16, patch_size=8, drop_path_rate=0.1),
}
NUMBERS = {"vit": 12, "resnet": 8, "timm's vit": 12}


@pytest.fixture(params=ENCODERS)
def name(request: pytest.FixtureRequest) -> str:
    """The name of an encoder; one of timm's is skipped where timm is not installed."""
    if "timm" in request.param:
        pytest.importorskip("timm")
    return request.param


def step(net: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor], int]:
    """The loss of a pass, gradients with the buffers after it, and how many numbers were saved for the backward."""
    torch.manual_seed(1)
    saved = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = net(images).square().mean()
    loss.backward()
    grads = {name: each.grad for name, each in net.named_parameters()}
    return loss.detach(), grads | {name: each.clone() for name, each in net.named_buffers()}, saved


def test_a_step_with_checkpointing_is_the_step_without(name: str) -> None:
    torch.manual_seed(0)
    plain = ENCODERS[name]().double()
    again = copy.deepcopy(plain)
    checkpoint_activations(again)
    assert list(again.state_dict()) == list(plain.state_dict())
    images = torch.rand(3, 3, 16 if "timm" in name else 8, 16 if "timm" in name else 8, dtype=torch.float64)
    loss, state, saved = step(plain, images)
    for net in (copy.deepcopy(again), again):  # a copy has parameters and statistics of its own
        other_loss, other_state, other_saved = step(net, images)
        torch.testing.assert_close(other_loss, loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(other_state, state, rtol=1e-6, atol=1e-12)
        assert other_saved < saved / 5


def test_blocks(name: str) -> None:
    found = blocks(ENCODERS[name]())
    assert len(found) == NUMBERS[name]
    assert len({type(block) for block in found}) == 1


def test_a_net_without_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="Sequential"):
        checkpoint_activations(conv_net())
