import copy
import io
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from contrast.encoders import conv_net, resnet, vit
from contrast.errors import InputError
from contrast.optim import LARS, constant, linear_scaled, parameter_groups, sqrt_scaled, warmup_cosine
from contrast.optim.stages import freeze, layer_wise, stages

CONF = Path(__file__).parents[1] / "conf"


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3, bias=False)).double()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, schedule: Any = None) -> None:
    for step in steps:
        inputs = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()


# LARS


def naive_lars(model: nn.Module, steps: int, lr: float, momentum: float, decay: float, trust: float) -> list[Tensor]:
    """The definition, one number at a time: Linear weights adapt and decay, everything of one dimension does not."""
    weights = list(model.parameters())
    velocities = [[0.0] * w.numel() for w in weights]
    for step in range(steps):
        inputs = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        model.zero_grad()
        model(inputs).square().sum().backward()
        for k, w in enumerate(weights):
            values, grads = w.detach().flatten().tolist(), w.grad.flatten().tolist()  # type: ignore[union-attr]
            ratio = 1.0
            if w.ndim > 1:
                grads = [g + decay * v for g, v in zip(grads, values, strict=True)]
                w_norm, g_norm = (math.sqrt(sum(x * x for x in xs)) for xs in (values, grads))
                if w_norm > 0 and g_norm > 0:
                    ratio = trust * w_norm / g_norm
            velocities[k] = [momentum * v + lr * ratio * g for v, g in zip(velocities[k], grads, strict=True)]
            new = [value - v for value, v in zip(values, velocities[k], strict=True)]
            w.data = torch.tensor(new, dtype=torch.float64).view_as(w)
    return [w.detach() for w in weights]


@pytest.mark.parametrize("zero", [False, True])
def test_lars_is_its_definition(zero: bool) -> None:
    settings = {"lr": 0.3, "momentum": 0.9, "trust": 0.02}
    model = net()
    if zero:  # a tensor that starts at 0 moves as by plain momentum, or it never would
        nn.init.zeros_(model[3].weight)
    expected = naive_lars(copy.deepcopy(model), 7, decay=0.1, **settings)
    train(model, LARS(parameter_groups(model, 0.1), **settings), range(7))
    for weight, value in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.detach(), value, rtol=1e-12, atol=1e-14)


def test_lars_leaves_gradients_and_unused_parameters_alone() -> None:
    model = net()
    unused = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([*model.parameters(), unused], lr=0.1, weight_decay=0.5)
    model(torch.randn(6, 5, dtype=torch.float64)).square().sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    loss = optimizer.step(lambda: torch.tensor(2.0))
    assert loss == 2
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), grads, strict=True))
    assert torch.equal(unused, torch.ones(2, 2))
    assert unused not in optimizer.state


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"momentum": 1.0}, {"weight_decay": -0.1}, {"trust": -1.0}])
def test_lars_settings_out_of_range(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        LARS(net().parameters(), **({"lr": 0.1} | bad))


# every configured optimiser and schedule


OPTIMIZERS = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml") if "_target_" in OmegaConf.load(path))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("rate", sorted(path.stem for path in (CONF / "scheduler").glob("*.yaml")))
def test_resumed_equals_uninterrupted(name: str, rate: str) -> None:
    def build(model: nn.Module) -> tuple[torch.optim.Optimizer, Any]:
        of_groups = instantiate(OmegaConf.load(CONF / "optimizer" / f"{name}.yaml"), _partial_=True)
        of_optimizer = instantiate(OmegaConf.load(CONF / "scheduler" / f"{rate}.yaml"), _partial_=True)
        optimizer = of_groups(parameter_groups(model))
        return optimizer, of_optimizer(optimizer, total_steps=20)

    whole = net()
    optimizer, schedule = build(whole)
    train(whole, optimizer, range(9), schedule)

    first = net()
    optimizer, schedule = build(first)
    train(first, optimizer, range(4), schedule)
    file = io.BytesIO()
    torch.save([first.state_dict(), optimizer.state_dict(), schedule.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    second = net()
    optimizer, schedule = build(second)
    for part, state in zip([second, optimizer, schedule], saved, strict=True):
        part.load_state_dict(state)
    train(second, optimizer, range(4, 9), schedule)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_the_weight_decay_of_the_recipe_reaches_the_decay_group_only(name: str) -> None:
    config = OmegaConf.load(CONF / "optimizer" / f"{name}.yaml")
    groups = instantiate(config, _partial_=True)(parameter_groups(net())).param_groups
    assert [group["weight_decay"] for group in groups] == [config.weight_decay, 0.0]
    groups = instantiate(config, _partial_=True)(parameter_groups(net(), 0.25)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.25, 0.0]


# parameter groups


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.image_norm = nn.LayerNorm([4, 5, 5])  # scales of three dimensions
        self.group_norm = nn.GroupNorm(2, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.tied = nn.Linear(4, 4)
        self.tied_again = nn.Linear(4, 4)
        self.tied_again.weight = self.tied.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.tensor(0.0))
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.token.no_decay = True  # type: ignore[attr-defined]
        self.table = nn.Parameter(torch.zeros(3, 4))


def test_groups_hold_every_trainable_parameter_once_and_in_its_place() -> None:
    model = Everything()
    decay, rest = parameter_groups(model, 0.1)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {names[p] for p in decay["params"]} == {
        *{"conv.weight", "attention.in_proj_weight", "attention.out_proj.weight", "tied.weight", "table"}
    }
    everything = [names[p] for p in decay["params"] + rest["params"]]
    assert sorted(everything) == sorted(n for n in names.values() if not n.startswith("frozen"))
    assert (decay["weight_decay"], rest["weight_decay"], rest["adapt"]) == (0.1, 0.0, False)


def test_groups_of_real_encoders() -> None:
    for model in (resnet(), nn.SyncBatchNorm.convert_sync_batchnorm(resnet())):
        decay, rest = parameter_groups(model)
        assert all(p.ndim == 4 for p in decay["params"])
        assert len(decay["params"]) == 20
        assert all(p.ndim == 1 for p in rest["params"])
        assert len(rest["params"]) == 40
        assert "weight_decay" not in decay
    model = vit(patch_size=8)
    rest = parameter_groups(model)[1]["params"]
    assert {id(model.class_token), id(model.encoder.pos_embedding)} <= {id(p) for p in rest}


def test_groups_of_one_kind_and_of_none() -> None:
    assert len(parameter_groups(nn.Linear(2, 2, bias=False))) == 1
    with pytest.raises(InputError, match="Tanh has no trainable parameter"):
        parameter_groups(nn.Tanh())


# the learning rate


def rates(build: Any, steps: int, lr: float = 2.0, **settings: Any) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = build(optimizer, **settings)
    learning_rates = []
    for _ in range(steps):
        learning_rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return learning_rates


def test_warmup_cosine_at_its_ends() -> None:
    learning_rates = rates(warmup_cosine, 14, total_steps=12, warmup_steps=3, final=0.1)
    assert learning_rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])  # 2 (s + 1) / 4, and the peak at step 3
    for step in range(3, 12):
        share = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 3) / 9))
        assert learning_rates[step] == pytest.approx(2 * share)
    assert learning_rates[11] > 0.2  # the last step
    assert learning_rates[12:] == pytest.approx([0.2, 0.2])


def test_warmup_cosine_without_warmup_and_by_fraction() -> None:
    learning_rates = rates(warmup_cosine, 10, total_steps=10, warmup_fraction=0.0)
    assert learning_rates[0] == 2
    assert all(a > b for a, b in itertools.pairwise(learning_rates))
    assert learning_rates[-1] > 0
    by_fraction = rates(warmup_cosine, 40, total_steps=40, warmup_fraction=0.25)
    assert by_fraction == rates(warmup_cosine, 40, total_steps=40, warmup_steps=10)
    assert by_fraction.index(max(by_fraction)) == 10


def test_constant() -> None:
    assert rates(constant, 3, total_steps=3) == [2, 2, 2]
    assert rates(constant, 4, total_steps=9, warmup_steps=1) == [1, 2, 2, 2]


@pytest.mark.parametrize("total_steps", [None, math.inf])
@pytest.mark.parametrize("build", [constant, warmup_cosine])
def test_a_training_of_unknown_length_has_a_constant_rate_after_the_warmup(build: Any, total_steps: Any) -> None:
    rate = rates(build, 2000, total_steps=total_steps, warmup_steps=3)
    assert rate[:3] == [0.5, 1.0, 1.5]
    assert rate[3:] == [2] * 1997
    assert rates(build, 5, total_steps=total_steps, warmup_fraction=0.0) == [2] * 5
    with pytest.warns(UserWarning, match=r"warmup_fraction=0\.1 .*set warmup_steps"):
        assert rates(build, 5, total_steps=total_steps, warmup_fraction=0.1) == [2] * 5


def test_a_cosine_needs_its_length() -> None:
    """In a loop of one's own it cannot be forgotten: a cosine of length 0 would end after one step."""
    with pytest.raises(TypeError, match="total_steps"):
        rates(warmup_cosine, 1)
    for length in (0, -1):
        with pytest.raises(InputError, match=f"does not fit a training of {length}"):
            rates(warmup_cosine, 1, total_steps=length)
    assert rates(constant, 3) == [2, 2, 2]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"total_steps": 10, "warmup_steps": 10}, "warm-up of 10 steps does not fit a training of 10"),
        ({"total_steps": 10, "warmup_fraction": -0.5}, "warm-up of -5"),
        ({"total_steps": 10, "final": 1.5}, "1.5"),
    ],
)
def test_schedules_that_do_not_fit(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        rates(warmup_cosine, 1, **settings)


def test_scaling_with_the_batch() -> None:
    assert linear_scaled(0.3, 4096) == pytest.approx(4.8)  # Chen et al. 2020
    assert linear_scaled(0.03, 512, reference=128) == pytest.approx(0.12)
    assert sqrt_scaled(0.075, 4096, reference=1) == pytest.approx(4.8)
    assert sqrt_scaled(1e-3, 64) == pytest.approx(5e-4)
    for bad in ((0, 256), (256, 0)):
        with pytest.raises(InputError, match=r"not (0 by 256|256 by 0)"):
            linear_scaled(0.1, *bad)


# --- stages


@pytest.mark.parametrize(
    ("net", "starts"),
    [
        (resnet("resnet18"), ["conv1", "layer1", "layer2", "layer3", "layer4"]),
        (vit("vit_ti", patch_size=8), ["class_token", *(f"encoder.layers.encoder_layer_{i}" for i in range(12))]),
        (conv_net(), ["0", "4", "8"]),
        (conv_net(widths=(16, 32, 256)), ["0", "4", "8"]),  # the last convolution has nearly all parameters
    ],
    ids=["ResNet", "ViT", "conv_net", "growing conv_net"],
)
def test_stages_follow_each_other_from_the_input(net: nn.Module, starts: list[str]):
    found = stages(net)
    named = [(name, found[parameter]) for name, parameter in net.named_parameters()]
    assert [place for _, place in named] == sorted(place for _, place in named)
    for i, start in enumerate(starts):
        first = next(name for name, place in named if place == i)
        assert first.startswith(start)
    assert named[-1][1] == len(starts) - 1


def test_rates_fall_towards_the_input():
    encoder = resnet("resnet18")
    model = nn.ModuleDict({"encoder": encoder, "classifier": nn.Linear(512, 3)})
    groups = layer_wise(parameter_groups(model, 0.1), encoder, lr=2.0, decay=0.5)
    rate = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    assert len(rate) == len(list(model.parameters()))
    assert rate[model["classifier"].weight] == 2.0
    assert rate[encoder.layer4[0].conv1.weight] == rate[encoder.layer4[0].bn1.weight] == 1.0
    assert rate[encoder.conv1.weight] == rate[encoder.bn1.bias] == 2.0 * 0.5**5
    decays = {parameter: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert (decays[encoder.conv1.weight], decays[encoder.bn1.bias]) == (0.1, 0.0)
    with pytest.raises(InputError, match=r"not 1\.5"):
        layer_wise([], encoder, 1.0, 1.5)


def test_frozen_stages_do_not_learn():
    encoder = resnet("resnet18")
    freeze(encoder, 2)
    learns = {name.partition(".")[0] for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert learns == {"layer2", "layer3", "layer4"}
    with pytest.raises(InputError, match="6 stages cannot be frozen: the encoder has 5"):
        freeze(encoder, 6)
