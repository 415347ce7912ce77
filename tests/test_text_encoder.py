"""Text encoders: padding never shows, a definition in loops, and models of transformers from disk."""

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contrast.encoders import hf_text, text_transformer
from contrast.encoders.text import HFText, TextTransformer
from contrast.errors import InputError
from contrast.optim.groups import parameter_groups

TEXT = torch.tensor([[5, 2, 9, 0, 0, 0], [3, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0]])


def small(**options: Any) -> TextTransformer:
    torch.manual_seed(0)
    return text_transformer(12, 6, **{"width": 16, "heads": 2, **options})


def naive(net: TextTransformer, text: Tensor) -> Tensor:
    """One text, token by token, without padding, in float64: [L] -> [F]."""
    net = copy.deepcopy(net).double()
    ids = [int(i) for i in text if i != 0]
    x = [net.token.weight[i] + net.position[place] for place, i in enumerate(ids)]
    for layer in net.layers:
        assert isinstance(layer, nn.TransformerEncoderLayer)
        attention = layer.self_attn
        heads, width = attention.num_heads, len(x[0])
        part = width // heads
        h = [layer.norm1(token) for token in x]
        q, k, v = zip(*((attention.in_proj_weight @ t + attention.in_proj_bias).chunk(3) for t in h), strict=True)
        mixed = []
        for i in range(len(x)):
            out = []
            for head in range(heads):
                at = slice(head * part, (head + 1) * part)
                scores = torch.stack([q[i][at] @ k[j][at] / math.sqrt(part) for j in range(len(x))])
                out.append(sum(p * v[j][at] for j, p in enumerate(scores.softmax(0))))
            mixed.append(torch.cat(out))
        x = [token + attention.out_proj(m) for token, m in zip(x, mixed, strict=True)]
        x = [token + layer.linear2(F.gelu(layer.linear1(layer.norm2(token)))) for token in x]
    return torch.stack([net.norm(token) for token in x]).mean(dim=0)


@pytest.mark.parametrize("mode", ["train", "eval", "inference"])
def test_it_is_the_definition_on_the_tokens_alone(mode: str):
    net = small().double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)  # so that attention is not flat, nor a bias 0
    net.train(mode == "train")
    with torch.inference_mode(mode == "inference"):  # where torch has another kernel
        features = net(TEXT)
    assert features.shape == (4, net.num_features)
    for row, text in zip(features[:3], TEXT[:3], strict=True):
        torch.testing.assert_close(row, naive(net, text), rtol=1e-9, atol=1e-9)
    assert (features[3] == 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_padding_and_neighbours_change_nothing_and_no_gradient_is_lost(training: bool):
    net = small().double().train(training)
    whole = net(TEXT)
    torch.testing.assert_close(net(TEXT[:2, :3]), whole[:2])
    torch.testing.assert_close(net(TEXT[1:2, :1]), whole[1:2])
    torch.testing.assert_close(net(TEXT.flip(0)), whole.flip(0))
    whole.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert (net.token.weight.grad[0] == 0).all()
    assert (net.token.weight.grad[1:7] != 0).any(dim=1).all()


def test_order_of_the_words_counts_and_layers_start_apart():
    net = small()
    assert not torch.allclose(net(torch.tensor([[2, 3]])), net(torch.tensor([[3, 2]])))
    first, second = (layer.linear1.weight for layer in net.layers)
    assert not torch.equal(first, second)
    assert (net.token.weight[0] == 0).all()


def test_embeddings_and_positions_do_not_decay():
    net = small()
    decay, rest = parameter_groups(net, weight_decay=0.1)
    names = {parameter: name for name, parameter in net.named_parameters()}
    decaying = {names[parameter].removeprefix("layers.")[2:] for parameter in decay["params"]}
    assert decaying == {"self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"}
    assert {"token.weight", "position", "norm.weight"} <= {names[parameter] for parameter in rest["params"]}


def test_autocast_is_close_and_finite():
    net = small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = net(TEXT)
    torch.testing.assert_close(features.float(), net(TEXT), rtol=0.1, atol=0.05)


def test_what_cannot_be_built_or_read():
    with pytest.raises(InputError, match="takes 6 tokens, the texts have 7"):
        small()(torch.ones(1, 7, dtype=torch.int64))
    for options, fact in (({"heads": 3}, "width=16 divided among heads=3"), ({"layers": 0}, "layers=0")):
        with pytest.raises(InputError, match=fact):
            small(**options)
    with pytest.raises(InputError, match="vocabulary=1 "):
        text_transformer(1, 6)
    with pytest.raises(InputError, match="length=0"):
        text_transformer(9, 0)


def test_without_transformers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs transformers: pip install 'contrast-learning\[transformers\]'"):
        hf_text("some-model", None, None)


# --- transformers


def saved_model(folder: Path, kind: str) -> str:
    """A model of random weights and 11 tokens on disk."""
    transformers = pytest.importorskip("transformers", reason="pip install 'contrast-learning[transformers]'")
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2}
    wide = {**sizes, "intermediate_size": 16, "max_position_embeddings": 8}
    if kind == "bert":
        config = transformers.BertConfig(**wide, pad_token_id=3)
    elif kind == "roberta":
        config = transformers.RobertaConfig(**wide, pad_token_id=1)
    elif kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=11, n_embd=8, n_head=2, n_layer=2, n_positions=8)
    elif kind == "t5":
        config = transformers.T5Config(vocab_size=11, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    else:
        vision = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "image_size": 8, "patch_size": 4}
        text, both = {"clip": ("CLIP", "CLIPConfig"), "siglip": ("Siglip", "SiglipConfig")}[kind]
        made = getattr(transformers, f"{text}TextConfig")(**wide, eos_token_id=10, bos_token_id=9)
        seen = getattr(transformers, f"{text}VisionConfig")(**vision, intermediate_size=16)
        config = getattr(transformers, both)(text_config=made.to_dict(), vision_config=seen.to_dict())
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "t5", "clip", "siglip"])
def test_models_of_transformers_are_the_mean_of_their_hidden_states(tmp_path: Path, kind: str):
    name = saved_model(tmp_path, kind)
    net = hf_text(name, vocabulary=12, length=6).eval()
    features = net(TEXT)
    assert features.shape == (4, net.num_features)
    assert features.dtype == torch.float32
    for row, text in zip(features[:3], TEXT[:3], strict=True):
        ids = text[text != 0] - 1
        alone = net.net(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).last_hidden_state[0]
        torch.testing.assert_close(row, alone.mean(dim=0), rtol=1e-4, atol=1e-5)
    assert (features[3] == 0).all()
    torch.testing.assert_close(net(TEXT[:2, :3]), features[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hf_text(name, None, None).eval()(TEXT), features)
    if kind == "roberta":  # counts positions from the first token that is not its own padding
        torch.testing.assert_close(net(TEXT[:1].roll(3, dims=1)), features[:1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(hf_text(name, None, None, pretrained=False).eval()(TEXT)[:3], features[:3])
    features.square().sum().backward()
    without = [key for key, parameter in net.named_parameters() if parameter.grad is None]
    assert without == []
    decaying = set(parameter_groups(net)[0]["params"])
    assert decaying
    assert not [part for part in net.modules() if isinstance(part, nn.Embedding) and part.weight in decaying]


def test_a_model_that_does_not_fit(tmp_path: Path):
    name = saved_model(tmp_path / "bert", "bert")
    with pytest.raises(InputError, match="knows 11 tokens, the tokenizer has 12"):
        hf_text(name, vocabulary=13, length=None)
    with pytest.raises(InputError, match=r"takes 8 tokens, the texts have 9: lower data\.length"):
        hf_text(name, vocabulary=None, length=9)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"transformers cannot build '.*empty'") as caught:
        hf_text(str(tmp_path / "empty"), None, None)
    assert "\n" not in str(caught.value)
    changed = hf_text(name, None, None, hidden_dropout_prob=0.5)
    assert isinstance(changed, HFText)
    assert changed.net.config.hidden_dropout_prob == 0.5


@pytest.mark.parametrize("pretrained", [True, False])
def test_code_that_comes_with_a_model_does_not_run_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretrained: bool
):
    """transformers asks on the terminal; in a run nobody should be asked, nor should code run that nobody asked for."""
    pytest.importorskip("transformers", reason="pip install 'contrast-learning[transformers]'")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    model = tmp_path / "model"
    model.mkdir()
    (model / "custom.py").write_text(
        "from transformers import PretrainedConfig\n"
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "class Config(PretrainedConfig):\n    model_type = 'custom'\n"
    )
    auto_map = {"AutoConfig": "custom.Config", "AutoModel": "custom.Model"}
    (model / "config.json").write_text(json.dumps({"model_type": "custom", "auto_map": auto_map}))
    with pytest.raises(InputError, match="trust_remote_code"):
        hf_text(str(model), None, None, pretrained=pretrained)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(InputError):  # the code has no class `Model`
        hf_text(str(model), None, None, pretrained=pretrained, trust_remote_code=True)
    assert (tmp_path / "ran").exists()
