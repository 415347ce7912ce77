import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from contrast.encoders import conv_net, load_encoder
from contrast.errors import InputError
from contrast.evaluation.encoder import Towers, from_checkpoint, from_weights
from contrast.keys import Second


def net(seed: int, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return conv_net(1, 8, widths=(width, 8))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, b.state_dict()[key]) for key, p in a.state_dict().items())


def checkpoint(encoder: nn.Module) -> dict[str, object]:
    state = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    return {"epoch": 3, "state_dict": state | {"projector.0.weight": torch.zeros(2, 2)}}


@pytest.mark.parametrize("kind", ["checkpoint", "plain", "prefixed", "safetensors", "mapping"])
def test_every_source_gives_the_same_weights(kind: str, tmp_path: Path) -> None:
    trained, fresh = net(0), net(1)
    path, prefix = tmp_path / "file.pt", None
    state = trained.state_dict()
    if kind == "checkpoint":
        torch.save(checkpoint(trained), path)
    elif kind == "plain":
        torch.save(state, path)
    elif kind == "prefixed":
        prefix = "module.encoder_q."
        torch.save({"state_dict": {prefix + key: value for key, value in state.items()}}, path)
    elif kind == "safetensors":
        path = tmp_path / "file.safetensors"
        save_file(state, path)
    assert not same(trained, fresh)
    load_encoder(fresh, state if kind == "mapping" else path, prefix)
    assert same(trained, fresh)


def test_another_architecture_is_refused_with_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save(checkpoint(net(0, width=6)), path)
    fresh, untouched = net(1), net(1)
    with pytest.raises(InputError) as caught:
        load_encoder(fresh, path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert "0 missing; 0 unexpected; 6 of another shape" in message
    assert "0.weight [6, 1, 3, 3] for [4, 1, 3, 3]" in message
    assert "and 2 more" in message
    assert same(fresh, untouched)


def test_missing_and_unexpected_keys() -> None:
    state = net(0).state_dict()
    state["head.weight"] = state.pop("0.weight")
    with pytest.raises(InputError, match=r"1 missing: 0.weight \[4, 1, 3, 3\]; 1 unexpected: head.weight"):
        load_encoder(net(1), state)


def test_a_wrong_prefix_names_those_there_are() -> None:
    with pytest.raises(InputError, match=r"no key that starts with 'key_encoder.'; .* encoder, projector"):
        load_encoder(net(1), checkpoint(net(0)), prefix="key_encoder.")


@pytest.mark.parametrize("name", ["a.pt", "a.ckpt", "a.safetensors"])
@pytest.mark.parametrize("damage", ["absent", "empty", "noise", "truncated"])
def test_unreadable_files_are_named(name: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "noise":
        path.write_bytes(bytes(range(256)) * 4)
    elif damage == "truncated":
        torch.save(net(0).state_dict(), path)
        path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(InputError, match=name) as caught:
        load_encoder(net(1), path)
    assert "\n" not in str(caught.value)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must not run",))


def test_pickled_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match=r"evil\.pt"):
        load_encoder(net(1), tmp_path / "evil.pt")
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [torch.zeros(3), {"weight": 3}, {0: torch.zeros(1)}])
def test_files_of_something_else(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other.pt .*no state dict"):
        load_encoder(net(1), tmp_path / "other.pt")


# --- evaluation builds the architecture alone: the checkpoint has the weights


def offline(weights: object) -> None:
    if weights:
        pytest.fail(f"asked for pretrained weights: {weights}")


def image_net(in_channels: int, image_size: int, weights: str | None = None) -> nn.Module:
    offline(weights)
    return conv_net(in_channels, image_size, widths=(4, 8))


def text_net(vocabulary: int, length: int, pretrained: bool = True) -> nn.Module:
    offline(pretrained)
    built = nn.EmbeddingBag(vocabulary, 3)
    built.num_features = 3
    return built


def create_model(name: str, num_classes: int, in_chans: int, **options: Any) -> nn.Module:
    """A stand-in for timm's."""
    offline(options.get("pretrained") or options.get("checkpoint_path"))
    return conv_net(in_chans, 8, widths=(4, 8))


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(list_models=lambda: ["net"], get_pretrained_cfg=lambda _: None, create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", module)


ENCODERS = {
    "torchvision": {"_target_": "test_weights.image_net", "weights": "IMAGENET1K_V2"},
    "timm": {"_target_": "contrast.encoders.timm_model", "name": "net", "pretrained": True},
    "file": {"_target_": "contrast.encoders.timm_model", "name": "net", "checkpoint_path": "gone.pth"},
}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("override", [False, True])
def test_a_checkpoint_is_evaluated_without_pretrained_weights(timm: None, name: str, override: bool) -> None:
    trained = net(0)
    saved = checkpoint(trained)
    saved["state_dict"] |= {"normalize.mean": torch.zeros(1, 1, 1, 1), "normalize.std": torch.ones(1, 1, 1, 1)}
    node = OmegaConf.create(ENCODERS[name])
    saved["config"] = {"encoder": {"_target_": "nowhere"} if override else ENCODERS[name]}
    saved["config"]["images"] = {"channels": 1, "size": 8}
    assert same(from_checkpoint(saved, node if override else None).encoder, trained)
    images = SimpleNamespace(channels=1, size=8, statistics=lambda: (torch.zeros(1), torch.ones(1)))
    assert same(from_weights(trained.state_dict(), node, images).encoder, trained)


def test_nor_are_pretrained_weights_of_an_encoder_of_captions() -> None:
    image, text = net(0), Second(text_net(5, 4, pretrained=False), 8)
    projector = nn.Linear(8, 8)
    projector.num_features = 8
    parts = {"encoder": image, "projector": projector, "key": text}
    state = {f"{part}.{key}": value for part, built in parts.items() for key, value in built.state_dict().items()}
    state |= {"normalize.mean": torch.zeros(1, 1, 1, 1), "normalize.std": torch.ones(1, 1, 1, 1)}
    text_node = {"_target_": "test_weights.text_net", "_partial_": True, "pretrained": True}
    config = {
        "encoder": {"_target_": "test_weights.image_net", "weights": "DEFAULT"},
        "projector": {"_target_": "test_weights.linear_projector"},
        "key": {"_target_": "contrast.keys.Second", "_partial_": True, "encoder": text_node},
        "images": {"channels": 1, "size": 8},
        "text": {"vocabulary": 5, "length": 4},
    }
    towers = from_checkpoint({"config": config, "state_dict": state})
    assert isinstance(towers, Towers)
    assert same(towers.key, text)


def linear_projector(in_features: int) -> nn.Module:
    built = nn.Linear(in_features, 8)
    built.num_features = 8
    return built
