from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from contrast.encoders import conv_net, load_encoder
from contrast.errors import InputError


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
