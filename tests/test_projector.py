from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from contrast.encoders import mlp
from contrast.errors import InputError

CONF = Path(__file__).parents[1] / "conf" / "projector"


def linear(before: int, after: int, bias: bool = False) -> str:
    return f"{before}-{after}{' + bias' if bias else ''}"


def layout(net: nn.Module) -> list[str]:
    parts = []
    for part in net.children():
        if isinstance(part, nn.Linear):
            parts.append(linear(part.in_features, part.out_features, part.bias is not None))
        elif isinstance(part, nn.BatchNorm1d):
            parts.append(f"norm {part.num_features}{'' if part.affine else ' plain'}")
        else:
            parts.append(type(part).__name__)
    return parts


LAYOUTS = {
    "identity": [],
    "small": [linear(512, 256), "norm 256", "ReLU", linear(256, 64, True)],
    "simclr": [linear(512, 512), "norm 512", "ReLU", linear(512, 128, True)],
    "simclr_v2": [*[linear(512, 512), "norm 512", "ReLU"] * 2, linear(512, 128, True)],
    "moco_v2": [linear(512, 512, True), "ReLU", linear(512, 128, True)],
    "moco_v3": [
        *[linear(512, 4096), "norm 4096", "ReLU", linear(4096, 4096), "norm 4096", "ReLU"],
        *[linear(4096, 256), "norm 256 plain"],
    ],
    "nnclr": [
        *[linear(512, 2048), "norm 2048", "ReLU", linear(2048, 2048), "norm 2048", "ReLU"],
        *[linear(2048, 256), "norm 256"],
    ],
}


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_the_layout_of_every_recipe(name: str) -> None:
    with initialize_config_dir(str(CONF.parent), version_base="1.3"):
        node = compose(f"projector/{name}").projector
    net = instantiate(node, in_features=512)
    assert layout(net) == LAYOUTS[name]
    assert net(torch.randn(2, 512)).shape == (2, net.num_features)


def test_no_projector_is_the_identity() -> None:
    features = torch.randn(3, 7)
    net = mlp(7, layers=0)
    assert net(features) is features
    assert net.num_features == 7


def test_one_layer_is_linear() -> None:
    assert layout(mlp(8, 4, layers=1)) == [linear(8, 4, True)]


def test_fewer_than_no_layers() -> None:
    with pytest.raises(InputError, match="-1 layers"):
        mlp(8, layers=-1)
