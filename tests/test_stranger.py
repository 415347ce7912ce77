"""The first hour of somebody with a folder of JPEGs: train, look, take the vectors and the encoder out, compare."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import Command, called, figures
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import nn

import contrast
from contrast.cli import commands
from contrast.data.images.folder import folder
from contrast.deploy.load import ImageEncoder

CLASSES = ("circle", "square", "stripes", "triangle")
SIZES = ((64, 48), (96, 96), (120, 160))
CPU = ("trainer.accelerator=cpu", "workers=0")


def drawing(name: str, size: tuple[int, int], numbers: random.Random) -> Image.Image:
    """A bright shape at a random place on a dark ground."""
    dark, bright = (tuple(numbers.randint(low, low + 120) for _ in range(3)) for low in (0, 130))
    image = Image.new("RGB", size, dark)
    pen = ImageDraw.Draw(image)
    radius = numbers.uniform(0.2, 0.4) * min(size)
    x, y = (numbers.uniform(radius, side - radius) for side in size)
    box = (x - radius, y - radius, x + radius, y + radius)
    if name == "circle":
        pen.ellipse(box, fill=bright)
    elif name == "square":
        pen.rectangle(box, fill=bright)
    elif name == "triangle":
        pen.regular_polygon((x, y, radius), 3, rotation=numbers.randint(0, 119), fill=bright)
    else:
        for column in range(0, size[0], 12):
            pen.line([column, 0, column, size[1]], fill=bright, width=4)
    return image


@pytest.fixture
def images(workplace: Path) -> Path:
    """320 JPEGs of three sizes in IMAGES/CLASS."""
    numbers = random.Random(0)
    for i in range(320):
        file = workplace / "images" / CLASSES[i % 4] / f"{i:03}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        drawing(CLASSES[i % 4], SIZES[i % 3], numbers).save(file, quality=90)
    return workplace / "images"


@pytest.mark.slow
def test_an_hour(
    pretrain: Command,
    evaluate: Command,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="contrast-embed writes .parquet with pyarrow")
    runtime = pytest.importorskip("onnxruntime", reason="ONNX programs run in onnxruntime")
    pytest.importorskip("onnxscript", reason="torch exports to ONNX with onnxscript")
    data = ["data.root=images", "data.image_size=32"]
    short = ["encoder.stem=imagenet", "batch_size=64", "trainer.max_epochs=2", "evaluation.per_class=[10]"]
    logged = ["logger=csv", "report=true", "hydra.run.dir=run"]
    assert pretrain("experiment=simclr_folder", *data, *short, *logged, *CPU) == 0
    assert "288 images of 4 classes to train on; 32 images, 0.1 of each class" in capfd.readouterr().out
    assert "</html>" in Path("run/report.html").read_text()
    assert {"knn_top1", "linear_top1", "untrained_knn_top1"} <= set(figures("run"))

    assert called(commands.embed, monkeypatch, "checkpoint=run", "data.root=images", "out=features.parquet", *CPU) == 0
    rows = parquet.read_table("features.parquet").to_pydict()
    encoder = contrast.load("run")
    assert isinstance(encoder, ImageEncoder)
    assert sorted(Path(name).name for name in rows["file"]) == sorted(file.name for file in images.rglob("*.jpg"))
    assert all(Path(name).parent.name == label for name, label in zip(rows["file"], rows["label"], strict=True))
    vectors = encoder.embed([images / name for name in rows["file"]])  # [N, F]
    np.testing.assert_allclose(np.array(rows["vector"]), vectors, rtol=0, atol=1e-5)

    assert called(commands.export, monkeypatch, "checkpoint=run", "format=onnx", "out=onnx") == 0
    pixels = torch.stack([encoder.preprocess(images / name) for name in rows["file"][:50]])
    (found,) = runtime.InferenceSession("onnx/encoder.onnx").run(["features"], {"pixels": pixels.numpy()})
    np.testing.assert_allclose(found, vectors[:50], rtol=0, atol=1e-4)

    assert called(commands.export, monkeypatch, "checkpoint=run", "format=safetensors", "out=exported") == 0
    net = torchvision.models.resnet18()
    result = net.load_state_dict(load_file("exported/encoder.safetensors"), strict=False)
    assert (set(result.missing_keys), result.unexpected_keys) == ({"fc.weight", "fc.bias"}, [])
    net.fc = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(encoder.model.normalize(pixels)), vectors[:50], rtol=0, atol=1e-5)

    torch.save(torchvision.models.resnet18().state_dict(), "torchvision.pth")
    theirs = ["data=folder", *data, "encoder=resnet18", "encoder.stem=imagenet"]
    for what in ("run", "exported", "torchvision.pth"):
        name = Path(what).stem
        assert evaluate(f"checkpoint={what}", "protocol=linear", *theirs, *CPU, f"hydra.run.dir={name}-linear") == 0
    assert figures("run-linear")["top1"] == figures("run")["linear_top1"] == figures("exported-linear")["top1"]
    assert set(figures("torchvision-linear")) == set(figures("run-linear"))

    assert evaluate("checkpoint=run", "protocol=retrieval", *CPU, "hydra.run.dir=retrieval") == 0
    assert figures("retrieval")["recall10"] > 0.5
    assert len(folder(images, image_size=32).test or ()) == 32  # what was measured on
