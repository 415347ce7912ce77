"""contrast-export: the same encoder for other programs, and back."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import FEW, TINY, Command, called, figures
from safetensors.torch import load_file

import contrast
from contrast.cli import commands
from contrast.deploy.card import shown, shown_command, training
from contrast.deploy.load import ImageEncoder, downloaded, saved_model
from contrast.encoders.vision import resnet
from contrast.encoders.weights import read
from contrast.errors import InputError
from contrast.evaluation.report import wilson


@pytest.fixture
def export(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`contrast-export` with these words in this process; returns its exit status."""
    return lambda *words: called(commands.export, monkeypatch, *words)


def pixels(count: int, channels: int = 1, size: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def loaded(what: str | Path) -> ImageEncoder:
    encoder = contrast.load(what)
    assert isinstance(encoder, ImageEncoder)
    return encoder


@pytest.fixture(scope="module")
def expected(trained: Path) -> torch.Tensor:
    with torch.no_grad():
        return loaded(trained)(pixels(5))


def test_an_exported_folder_is_loaded_again(
    export: Command, trained: Path, expected: torch.Tensor, capfd: pytest.CaptureFixture[str]
) -> None:
    assert export(f"checkpoint={trained}", "out=a") == 0
    assert "a/encoder.safetensors" in capfd.readouterr().out
    for what in ("a", "a/encoder.safetensors"):
        encoder = loaded(what)
        with torch.no_grad():
            torch.testing.assert_close(encoder(pixels(5)), expected)
        assert (encoder.image_size, encoder.channels) == (8, 1)
    state = read(trained / "checkpoints" / "last.ckpt")["state_dict"]
    for key, value in load_file("a/encoder.safetensors").items():
        assert torch.equal(value, state[f"encoder.{key}"])
    config = json.loads(Path("a/config.json").read_text())
    torch.testing.assert_close(torch.tensor(config["mean"]), state["normalize.mean"].flatten())
    assert "root" not in config
    pytest.importorskip("huggingface_hub")
    assert export("checkpoint=a", "format=hub", "out=b") == 0  # from one form to another
    for words in (("format=hub", "out=a"), ("format=safetensors", "out=b")):  # contrast.load would read one of them
        assert export(f"checkpoint={trained}", *words) == 2
    with torch.no_grad():
        torch.testing.assert_close(loaded("b")(pixels(5)), expected)


def test_a_program_of_torch_is_the_encoder(
    export: Command, trained: Path, expected: torch.Tensor, capfd: pytest.CaptureFixture[str]
) -> None:
    assert export(f"checkpoint={trained}", "format=torch", "out=a") == 0
    program = torch.export.load("a/encoder.pt2").module()
    torch.testing.assert_close(program(pixels(5)), expected, rtol=0, atol=1e-5)
    (largest,) = re.findall(r"largest difference from PyTorch (\S+),", capfd.readouterr().out)
    assert float(largest) < 1e-5


def test_a_card_shows_no_secret_of_an_url() -> None:
    urls = ["https://me:s3cret@host/{000..009}.tar?X-Amz-Signature=abc,def", "s3://me:s3cret@b/1.tar"]
    data = {"_target_": "m.webdataset", "urls": urls, "test_urls": urls[0], "name": urls[0]}
    assert dict(training({"data": data, "images": {}}))["data"] == "webdataset(name=https://host/{000..009}.tar)"
    assert shown_command([f"data.urls=[{','.join(urls)}]"]) == (
        "contrast-pretrain 'data.urls=[https://host/{000..009}.tar,s3://b/1.tar]'"
    )


def test_a_card_shows_no_folder_of_the_machine() -> None:
    words = [
        "data.root=[/home/me/a,~/b]",
        "data.name=owner/set",
        "encoder.weights=hf:owner/name",
        "data.file=../x/y.csv",
    ]
    assert shown_command(words) == (
        "contrast-pretrain 'data.root=[a,b]' data.name=owner/set encoder.weights=hf:owner/name data.file=y.csv"
    )
    assert shown({"_target_": "m.net", "weights": "/home/me/last.ckpt"}) == "net(weights=last.ckpt)"


def test_a_program_that_differs_is_not_kept(
    export: Command, trained: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("contrast.deploy.export.LARGEST_ERROR", -1.0)
    assert export(f"checkpoint={trained}", "format=torch", "out=a") == 2
    assert "differs from PyTorch" in capfd.readouterr().err
    assert not Path("a/encoder.pt2").exists()


def test_onnx_is_the_encoder_with_its_normalisation(
    export: Command, trained: Path, expected: torch.Tensor, capfd: pytest.CaptureFixture[str]
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert export(f"checkpoint={trained}", "format=onnx", "out=a") == 0
    session = runtime.InferenceSession("a/encoder.onnx")
    for count in (1, 5, 7):
        (found,) = session.run(["features"], {"pixels": pixels(count).numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, loaded(trained)(pixels(count)), rtol=0, atol=1e-4)
    assert {path.name for path in Path("a").iterdir()} == {"encoder.onnx", "config.json"}
    (largest,) = re.findall(r"largest difference from PyTorch (\S+),", capfd.readouterr().out)
    assert float(largest) < 1e-4


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_torchvision_loads_a_resnet(
    export: Command, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], stem: str
) -> None:
    """Of torchvision's keys only the classifier's are missing; for the stem of small images the command says how."""
    torch.manual_seed(0)
    net = resnet("resnet18", stem=stem)  # type: ignore[arg-type]
    node = {"_target_": "contrast.encoders.resnet", "name": "resnet18", "stem": stem}
    state = {f"encoder.{key}": value for key, value in net.state_dict().items()}
    state |= {"normalize.mean": torch.full((1, 3, 1, 1), 0.5), "normalize.std": torch.full((1, 3, 1, 1), 0.2)}
    images = {"channels": 3, "size": 32, "ids": 9, "square": True}
    config = {"encoder": node, "images": images, "text": {}, "name": "mine", "key": None, "projector": None}
    torch.save({"config": config, "state_dict": state}, "last.ckpt")
    assert export("checkpoint=last.ckpt", "out=a") == 0
    told = capfd.readouterr().out
    theirs = torchvision.models.resnet18()
    if stem == "cifar":
        (change,) = re.findall(r"net\.conv1 = .*", told)
        exec(change, {"torch": torch, "net": theirs})
    else:
        assert "conv1" not in told
    result = theirs.load_state_dict(load_file("a/encoder.safetensors"), strict=False)
    assert set(result.missing_keys) == {"fc.weight", "fc.bias"}
    assert result.unexpected_keys == []
    theirs.fc = torch.nn.Identity()
    encoder = loaded("a")
    x = pixels(2, channels=3, size=32)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(encoder.model.normalize(x)), encoder(x))


def test_the_hub_has_both_towers_and_a_card_from_the_run(
    export: Command, workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    from contrast.deploy.hub import HubEncoder

    words = ["method=clip", "data=digits_words", "callbacks=none", *TINY, *FEW, "trainer.limit_train_batches=2"]
    assert called(commands.pretrain, monkeypatch, *words, "hydra.run.dir=run", "name=mine") == 0
    assert export("checkpoint=run", "format=hub", "out=a") == 0
    assert {path.name for path in Path("a").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    ours, theirs, direct = loaded("a"), HubEncoder.from_pretrained("a"), loaded("run")
    for one in (ours, theirs):
        assert not one.training
        with torch.no_grad():
            torch.testing.assert_close(one(pixels(4)), direct(pixels(4)))
        torch.testing.assert_close(one.encode_text(["a seven"]), direct.encode_text(["a seven"]))
    card = hub.ModelCard.load("a/README.md")
    assert card.data.library_name == "contrast"
    score = figures("run")["knn_top1"]
    low, high = wilson(score, 100)
    assert f"{score:.4f} ({low:.4f} to {high:.4f})" in card.text
    for told in ("# mine", "digits_words()", "method=clip", f"torch {torch.__version__}", "recall@5", "SimCLRViews("):
        assert told in card.text, told
    Path("a/README.md").write_text("---\nlibrary_name: contrast\n---\nmy own words")
    capfd.readouterr()
    assert export("checkpoint=run", "format=hub", "out=a") == 0
    assert "my own words" in Path("a/README.md").read_text()
    assert "stays as it is" in capfd.readouterr().out
    theirs.save_pretrained("again")
    torch.testing.assert_close(loaded("again").encode_text(["a seven"]), direct.encode_text(["a seven"]))
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **options: "a" if name == "owner/name" else "absent")
    torch.testing.assert_close(loaded("hf:owner/name").encode_text(["a"]), direct.encode_text(["a"]))
    with pytest.raises(InputError, match="absent"):
        contrast.load("hf:owner/other")


def test_intervals_are_wilsons() -> None:
    assert wilson(0.9, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)  # Wilson 1927, as statsmodels computes it
    assert wilson(1.0, 360)[0] == pytest.approx(0.98944, abs=1e-4)


def test_what_cannot_be_exported_is_named(
    export: Command, trained: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export(f"checkpoint={trained}", "format=onxn", "out=a") == 2
    assert "format=onxn: should be 'safetensors', 'torch', 'onnx' or 'hub'" in capfd.readouterr().err
    Path("file").touch()
    assert export(f"checkpoint={trained}", "format=safetensors", "out=file") == 2
    assert "out=file is a file, and an encoder is exported to a folder" in capfd.readouterr().err
    for package, words in (("onnxruntime", ["format=onnx"]), ("huggingface_hub", ["format=hub"])):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            patch.delitem(sys.modules, "contrast.deploy.hub", raising=False)
            assert export(f"checkpoint={trained}", *words, "out=a") == 2
            assert f"needs {package}: pip install 'contrast-learning[export]'" in capfd.readouterr().err
            if package == "huggingface_hub":
                with pytest.raises(InputError, match="needs huggingface_hub"):
                    downloaded("owner/name")
    Path("program").mkdir()
    Path("program/config.json").write_text('{"mean": [0.5], "std": [0.5]}')
    Path("program/encoder.onnx").touch()
    with pytest.raises(InputError, match=r"program holds encoder.onnx beside .* only format=safetensors and"):
        saved_model("program")
    Path("damaged").mkdir()
    Path("damaged/config.json").write_text("{}")
    with pytest.raises(InputError, match="damaged holds no exported encoder"):
        saved_model("damaged")


def test_a_refused_export_leaves_no_folder(
    export: Command, trained: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export(f"checkpoint={trained}", "format=onnx", "out=refused") == 2
    assert "format=onnx needs onnxruntime" in capfd.readouterr().err
    assert not Path("refused").exists()


def test_an_exported_folder_is_evaluated(export: Command, evaluate: Command, trained: Path) -> None:
    assert export(f"checkpoint={trained}", "out=a") == 0
    for what, name in ((trained, "run"), ("a", "folder")):
        words = [f"checkpoint={what}", "data=digits", "protocol=knn", "trainer.accelerator=cpu"]
        assert evaluate(*words, f"hydra.run.dir={name}") == 0
    assert figures("run") == figures("folder")
