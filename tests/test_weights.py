import re
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from contrast.encoders import conv_net, load_encoder, resnet, vit
from contrast.encoders.pretrained import Weights, pretrained, statistics_of
from contrast.errors import InputError
from contrast.evaluation.encoder import Towers, from_checkpoint, from_source
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


@pytest.mark.parametrize(("own", "other"), [("cifar", "imagenet"), ("imagenet", "cifar")])
def test_weights_of_the_other_stem_name_it(own: str, other: str) -> None:
    state = resnet(stem=other).state_dict()  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"encoder.stem={other}"):
        load_encoder(resnet(stem=own), state)  # type: ignore[arg-type]


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
    state["tail.weight"] = state.pop("0.weight")
    with pytest.raises(InputError, match=r"1 missing: 0.weight \[4, 1, 3, 3\]; 1 unexpected: tail.weight"):
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


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
@pytest.mark.parametrize("size", [5000, -1])
def test_a_file_that_ends_too_early_says_so(kind: str, size: int, tmp_path: Path) -> None:
    path, state = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth"), net(0, width=64).state_dict()
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[:size])
    message = f"cannot read weights from {path} of {path.stat().st_size:,} bytes: it ends too early"
    with pytest.raises(InputError, match=f"^{re.escape(message)}.{{,60}}$"):
        load_encoder(net(1), path)


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


# --- files of other projects


def moved(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


def other(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a second network of the same kind."""
    return {key: value + 1 for key, value in state.items()}


def files(state: dict[str, torch.Tensor]) -> dict[str, tuple[dict[str, object], str]]:
    """What other projects save, and what the line about it has to mention."""
    fc = {"fc.weight": torch.zeros(9, 8), "fc.bias": torch.zeros(9)}
    without_counters = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    return {
        "torchvision": ({**state, **fc}, "passed over: fc. (2)"),
        "torchvision's old files": (without_counters, "12 tensors"),
        "nn.DataParallel": ({"epoch": 3, "model": moved(state | fc, "module.")}, "under 'model.module.'"),
        "torch.compile": (moved(state, "_orig_mod."), "under '_orig_mod.'"),
        "MoCo": (
            {
                "arch": "resnet18",
                "state_dict": moved(state | {"fc.0.weight": torch.zeros(8, 8)}, "module.encoder_q.")
                | moved(other(state), "module.encoder_k.")
                | {"module.queue": torch.zeros(8, 4)},
                "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}},
            },
            "under 'state_dict.module.encoder_q.' are the encoder's; passed over: fc. (1), optimizer (1), enc",
        ),
        "DINO": (
            {
                "student": moved(state, "module.backbone."),
                "teacher": moved(other(state), "backbone."),
                "args": Namespace(),
            },
            "under 'student.module.backbone.'",
        ),
        "solo-learn": (
            {
                "state_dict": moved(state, "backbone.") | {"projector.0.bias": torch.zeros(4)},
                "hyper_parameters": {"a": 1},
            },
            "passed over: projector (1)",
        ),
    }


@pytest.mark.parametrize("project", files(net(0).state_dict()))
def test_files_of_other_projects(project: str, tmp_path: Path) -> None:
    trained, fresh = net(0), net(1)
    content, mention = files(trained.state_dict())[project]
    torch.save(content, tmp_path / "file.pth")
    line = load_encoder(fresh, tmp_path / "file.pth")
    assert same(trained, fresh)
    assert mention in line
    assert "\n" not in line


def test_two_encoders_in_a_file_are_not_guessed_between() -> None:
    state = net(0).state_dict()
    both = moved(state, "left.") | moved(other(state), "right.")
    with pytest.raises(InputError, match=r"2 encoders, choose one by prefix=: left\., right\."):
        load_encoder(net(1), both)
    fresh = net(1)
    load_encoder(fresh, both, prefix="left.")
    assert same(net(0), fresh)


@pytest.mark.parametrize("name", ["resnet18", pytest.param("vit_b_16", marks=pytest.mark.slow)])
def test_the_files_of_torchvision(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file under the name that torchvision gives it brings the mean and std of torchvision's transforms."""
    torch.manual_seed(0)
    whole = models.get_model(name, weights=None)
    published = models.get_model_weights(name).IMAGENET1K_V1.url.rpartition("/")[2]
    for file, mean in ((published, [0.485, 0.456, 0.406]), ("mine.pth", [0.0, 0.0, 0.0])):
        torch.save(whole.state_dict(), tmp_path / file)
        with caplog.at_level("INFO"):
            if name == "resnet18":
                encoder = resnet(name, image_size=64, stem="imagenet", weights=str(tmp_path / file))
            else:
                encoder = vit(name, image_size=224, weights=str(tmp_path / file))
        images = SimpleNamespace(channels=3, statistics=lambda: ([0.0] * 3, [1.0] * 3))
        assert list(statistics_of(encoder, images)[0]) == mean
        assert file in caplog.messages[-1]
        assert ("the weights' mean" in caplog.messages[-1]) == (file == published)
        (tmp_path / file).unlink()
    whole.fc = whole.heads = nn.Identity()
    pixels = torch.rand(1, 3, 224, 224)
    assert torch.equal(encoder.eval()(pixels), whole.eval()(pixels))


def test_torchvision_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    whole = models.resnet18(weights=None)
    asked = []
    monkeypatch.setattr(
        models.ResNet18_Weights, "get_state_dict", lambda self, **_: asked.append(self) or whole.state_dict()
    )
    for name in ("resnet18", "ResNet18_Weights.IMAGENET1K_V1"):
        encoder = resnet(stem="imagenet", weights=f"torchvision:{name}")
        assert torch.equal(encoder.layer1[0].conv1.weight, whole.layer1[0].conv1.weight)
        assert encoder.pixel_statistics == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert asked == [models.ResNet18_Weights.IMAGENET1K_V1] * 2
    with pytest.raises(InputError, match=r"conv1\.weight \[64, 3, 7, 7\] for \[64, 3, 3, 3\]"):
        resnet(stem="cifar", weights="torchvision:resnet18")


def no_network(*_: object, **__: object) -> None:
    raise OSError("no route\nto the host")


def test_what_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", no_network)
    for source, message in {
        "torchvision:resnet18": "no route",
        "torchvision:resnet181": "no weights 'resnet181'",
        "nowhere.pth": "no checkpoint at nowhere.pth",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            pretrained(net(0), source)
        assert "\n" not in str(caught.value)


def test_timm_and_hugging_face(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="pip install 'contrast-learning[timm]'")
    hub = pytest.importorskip("huggingface_hub")
    torch.manual_seed(0)
    make = timm.create_model
    trained = make("resnet18", num_classes=0)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: trained)
    encoder = resnet(stem="imagenet", weights="timm:resnet18.a1_in1k")
    assert same(trained, encoder)
    assert list(encoder.pixel_statistics[0]) == list(trained.pretrained_cfg["mean"])

    save_file(trained.state_dict() | {"fc.weight": torch.zeros(9, 512)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.1, 0.1, 0.1]}}')
    monkeypatch.setattr(hub, "list_repo_files", lambda name: [path.name for path in tmp_path.iterdir()])
    monkeypatch.setattr(hub, "hf_hub_download", lambda name, file: str(tmp_path / file))
    encoder = resnet(stem="imagenet", weights="hf:some/repository")
    assert same(trained, encoder)
    assert encoder.pixel_statistics == ([0.5] * 3, [0.1] * 3)
    with pytest.raises(InputError, match=r"has no other\.bin"):
        pretrained(encoder, "hf:some/repository:other.bin")


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
    assert same(from_checkpoint(saved, node if override else None, trust=True).encoder, trained)
    images = SimpleNamespace(channels=1, size=8, statistics=lambda: (torch.zeros(1), torch.ones(1)))
    assert same(from_source(Weights("file", trained.state_dict(), None), node, images).encoder, trained)


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
    towers = from_checkpoint({"config": config, "state_dict": state}, trust=True)
    assert isinstance(towers, Towers)
    assert same(towers.key, text)


def linear_projector(in_features: int) -> nn.Module:
    built = nn.Linear(in_features, 8)
    built.num_features = 8
    return built
