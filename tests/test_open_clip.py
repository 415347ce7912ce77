"""The towers of open_clip: the same vectors as its own model, and CLIP with both of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from PIL import Image
from torch import nn

import contrast
from contrast.data.text.tokenizer import OpenClipTokenizer, tokenizer_of
from contrast.encoders import open_clip_image, open_clip_text
from contrast.errors import InputError
from contrast.keys import Second

open_clip = pytest.importorskip("open_clip")
NAME = "tiny-for-tests"
CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def model(tmp_path: Path) -> nn.Module:
    """A tiny architecture under a name of its own, and its weights, which the towers are to load."""
    (tmp_path / f"{NAME}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(tmp_path / f"{NAME}.json")
    net = open_clip.create_model(NAME)
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    return net.eval()


def test_the_towers_are_the_models_own(model: nn.Module, tmp_path: Path) -> None:
    weights, tokenizer = str(tmp_path / "weights.pt"), OpenClipTokenizer(NAME)
    image = open_clip_image(NAME, image_size=32, pretrained=weights).eval()
    text = open_clip_text(NAME, tokenizer.size, 12, pretrained=weights).eval()
    assert image.num_features == text.num_features == 16
    pixels, tokens = torch.rand(2, 3, 32, 32), tokenizer.encode(["a cat", "two dogs!"], 12)
    torch.testing.assert_close(image(pixels), model.encode_image(pixels))
    torch.testing.assert_close(text(tokens), model.encode_text(tokens))
    assert image.pixel_statistics == (model.visual.image_mean, model.visual.image_std)
    assert sorted(n for n, _ in text.named_parameters() if "logit" in n or "visual" in n) == []
    loss = text(tokens).sum() + image(pixels).sum()
    loss.backward()
    unused = [name for net in (image, text) for name, p in net.named_parameters() if p.grad is None]
    assert unused == []  # DDP would wait for their gradients


def test_the_tokenizer_is_open_clips(model: nn.Module) -> None:
    tokenizer = OpenClipTokenizer(NAME)
    texts = ["a cat", "a very long text about cats and dogs and birds and fish and more"]
    with pytest.warns(UserWarning, match="1 of 2 texts have more than 12 tokens"):
        ids = tokenizer.encode(texts, 12)
    assert torch.equal(ids, open_clip.get_tokenizer(NAME)(texts, context_length=12))
    assert "a cat" in tokenizer.decode(ids)[0]
    assert torch.equal(tokenizer_of(tokenizer.facts()).encode(texts[:1], 12), ids[:1])
    assert tokenizer.encode([], 12).shape == (0, 12)


def test_what_does_not_fit_is_refused(model: nn.Module) -> None:
    for build in (lambda: open_clip_image("ViT-B-33"), lambda: open_clip_image("hf-hub:some/one")):
        with pytest.raises(InputError, match="no model of open_clip"):
            build()
    with pytest.raises(InputError, match="ViT-B-33"):
        OpenClipTokenizer("ViT-B-33")
    with pytest.raises(InputError, match=r"3 channels, not 1"):
        open_clip_image(NAME, in_channels=1)
    with pytest.raises(InputError, match=r"texts of 12 tokens, not 32: set data\.length"):
        open_clip_text(NAME, 49408, 32)
    with pytest.raises(InputError, match=r"data\.tokenizer=open_clip:"):
        open_clip_text(NAME, 100, 12)
    with pytest.raises(InputError, match="no_such_tag"):
        open_clip_image(NAME, pretrained="no_such_tag")
    tower = open_clip_text(NAME, 49408, 12)
    assert isinstance(Second(tower, 16, project=False).projector, nn.Identity)
    with pytest.raises(InputError, match="texts have 16 dimensions and images 8"):
        Second(tower, 8, project=False)


@pytest.mark.slow
def test_both_towers_in_a_run(model: nn.Module, pretrain: Command, evaluate: Command, workplace: Path) -> None:
    colours = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}
    lines = ["path,caption,label"]
    for i in range(12):
        name = list(colours)[i % 3]
        Image.new("RGB", (32, 32), tuple(min(255, c + 4 * i) for c in colours[name])).save(f"{i}.png")
        lines.append(f"{i}.png,a {name} square,{name}")
    Path("captions.csv").write_text("\n".join(lines) + "\n")
    data = ["data=captions", "data.file=captions.csv", "data.label_column=label", "data.length=12", "views=captions"]
    towers = [f"data.tokenizer=open_clip:{NAME}", "encoder=open_clip", f"encoder.name={NAME}", "key=open_clip"]
    weights = f"{workplace}/weights.pt"
    towers += [f"key.encoder.name={NAME}", "projector=identity", "key.project=false", "data.test_fraction=0.5"]
    towers += [f"encoder.pretrained={weights}", f"key.encoder.pretrained={weights}"]
    cheap = ["trainer.accelerator=cpu", "logger=csv", "batch_size=4", "evaluation.enabled=false", "callbacks=none"]
    assert pretrain("method=clip", *data, *towers, *cheap, "trainer.max_epochs=1", "hydra.run.dir=run") == 0
    saved = contrast.load("run")
    vectors = saved.encode_text(["a red square"])
    assert vectors.shape == (1, 16)
    words = ["checkpoint=run", "protocol=zeroshot", "protocol.templates=['a {} square']", "trainer.accelerator=cpu"]
    assert evaluate(*words, "hydra.run.dir=zs") == 0
