"""A language model out of its run: loaded, and evaluated on another text, by the definition in float64."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, figures
from test_perplexity import HIDDEN, V, model, naive, naive_scores, outputs

import contrast
from contrast.data.text.corpus import corpus
from contrast.deploy.language import NextWordModel
from contrast.errors import InputError

WORDS = ("<unk>", *(f"w{i}" for i in range(V - 2)))
DRAWS = {"draws": 4, "sampler": {"_target_": "contrast.samplers.Unigram", "_partial_": True, "power": 0.75}}
TABLE, PLAIN = {"_target_": "contrast.negatives.Table"}, {"temperature": 1.0, "cosine": False}
SOFTMAX, NCE = ({"_target_": f"contrast.heads.{name}", **PLAIN} for name in ("InfoNCE", "NCE"))
NODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the `outputs` of these names
    "full_softmax": (TABLE, SOFTMAX),
    "sampled_softmax": ({**TABLE, **DRAWS, "sparse": True}, SOFTMAX),
    "nce": ({**TABLE, **DRAWS}, {**NCE, "bias": -0.5}),
    "negative_sampling": ({**TABLE, **DRAWS}, {**NCE, "correction": False}),
    "hierarchical_softmax": ({"_target_": "contrast.negatives.Tree"}, NCE),
    "adaptive_softmax": (
        {"_target_": "contrast.negatives.Targets"},
        {"_target_": "contrast.heads.AdaptiveSoftmax", "cutoffs": [3, 7], "div_value": 2.0},
    ),
}


def saved(name: str, path: Path, **data: object) -> Any:
    """Writes the checkpoint of an untrained model, and returns the model."""
    made, (negatives, head) = model(*outputs()[name], words=WORDS), NODES[name]
    made.config = {
        "model": {"_target_": "contrast.words.LanguageModel"},
        "encoder": {"_target_": "contrast.encoders.GRU", "dim": 4, "hidden": HIDDEN},
        "negatives": negatives,
        "head": head,
        "data": {"unknown": "keep", "path": "gone.txt", **data},
    }
    checkpoint: dict[str, object] = {"state_dict": made.state_dict()}
    made.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return made


@pytest.mark.parametrize("name", NODES)
def test_every_output_layer_is_loaded(name: str, tmp_path: Path) -> None:
    made = saved(name, tmp_path / "last.ckpt")
    loaded = contrast.load(tmp_path / "last.ckpt")
    assert isinstance(loaded, NextWordModel)
    loaded = loaded.double()
    text = "w0 w3 , w1\n\nw8 w0 w0\nw5"
    classes = [2, 5, 1, 3, 0, 10, 2, 2, 0, 7, 0]  # the end of a line, <unk>, w0, ...
    expected = naive(made, name, torch.tensor(classes) - 1, 1, len(classes))
    kind = "perplexity_with_log_q" if name == "negative_sampling" else "perplexity"
    assert loaded.perplexity(text) == pytest.approx(expected[kind], rel=1e-5)
    told = loaded.log_probs(text)
    assert [word for word, _ in told] == ["w0", "w3", "<unk>", "w1", "\n", "w8", "w0", "w0", "\n", "w5", "\n"]
    assert math.exp(-sum(value for _, value in told) / len(told)) == pytest.approx(expected[kind], rel=1e-5)

    features, _ = made.encoder(torch.tensor([[0, *classes[:-1]]]))
    scores = naive_scores(made, name, features[0, -1].detach())
    if name == "negative_sampling":
        log_q = made.negatives.sampler.log_prob(torch.arange(V)).tolist()
        scores = [score + q for score, q in zip(scores, log_q, strict=True)]
    total = math.fsum(math.exp(score) for score in scores)
    shares = {word: math.exp(score) / total for word, score in zip(("\n", *WORDS), scores, strict=True)}
    found = loaded.next_words(text, k=100)
    assert [word for word, _ in found] == sorted(shares, key=lambda word: -shares[word])
    assert dict(found) == pytest.approx(shares, rel=1e-5)
    assert dict(told)["w5"] == pytest.approx(math.log(dict(loaded.next_words("w0 w3 , w1\nw8 w0 w0\n", 100))["w5"]))
    assert not loaded.training


@pytest.mark.parametrize("unit", ["line", "paragraph", "file"])
@pytest.mark.parametrize("unknown", ["keep", "drop"])
def test_a_string_is_read_as_a_file(tmp_path: Path, unit: str, unknown: str) -> None:
    saved("full_softmax", tmp_path / "last.ckpt", unit=unit, unknown=unknown)
    loaded = contrast.load(tmp_path / "last.ckpt")
    text = "\n , ,\nw0 W3 ,\n w1\n\n\n,\nw8 w0\x1c\nw5 \u00adw7\n\n"
    (tmp_path / "other.txt").write_text(text)
    read = loaded.corpus(tmp_path / "other.txt", cache=tmp_path / "cache")
    names = ["\n" if i < 0 else WORDS[i] for i in read.ids.tolist()]
    assert [word for word, _ in loaded.log_probs(text)] == names
    assert read.words == WORDS
    assert read.counts.tolist() == [names.count(word) for word in WORDS]
    assert names.count("<unk>") == (4 if unknown == "keep" else 0)
    assert read.total_words == 11


def test_a_vocabulary_is_given(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("b a b c d <unk>\n")
    drop, keep = ([1, 0, 1, 2, -1], [1, 2, 1]), ([1, 0, 1, 2, 2, 2, 2, 2, -1], [1, 2, 5])
    for unknown, (ids, counts) in (("drop", drop), ("keep", keep)):
        words = ("a", "b", "c" if unknown == "drop" else "<unk>")
        read = corpus(tmp_path / "text.txt", words=words, unknown=unknown, cache=tmp_path / "cache")
        assert read.words == words
        assert read.ids.tolist() == ids
        assert read.counts.tolist() == counts


def test_a_run_is_evaluated_on_another_text(words: Command, evaluate: Command, capsys: Any) -> None:
    Path("text.txt").write_text("one two three four five six seven\n" * 40)
    Path("other.txt").write_text("One two six seven\nof four\n")
    few = ("data=corpus", "data.path=text.txt", "data.min_count=1", "model.length=4", "model.batch=8", "encoder.dim=8")
    few += ("encoder.hidden=8", "trainer.max_epochs=1", "logger=none", "trainer.accelerator=cpu")
    assert words("experiment=language_model", *few, "hydra.run.dir=run") == 0
    assert evaluate("checkpoint=run", "protocol=perplexity", "data.path=other.txt", "hydra.run.dir=eval") == 0
    told = "other: 6 words, of which 1 (16.67%) are not in the vocabulary of 8 and count as <unk>"
    assert told in capsys.readouterr().out
    loaded = contrast.load("run")
    found = figures("eval")
    assert found["perplexity"] == pytest.approx(loaded.perplexity(Path("other.txt").read_text()), rel=1e-6)
    assert found["words"] == 8  # six words and two ends of lines
    assert found["unknown_share"] == pytest.approx(1 / 6)
    assert json.loads(Path("eval/metrics.json").read_text())["data"] == "other"
    assert [word for word, _ in loaded.log_probs("of two")] == ["<unk>", "two", "\n"]

    capsys.readouterr()
    assert evaluate("checkpoint=run", "hydra.run.dir=b") == 2
    assert "is of a run on text: protocol=perplexity data.path=FILE evaluates it" in capsys.readouterr().err
    other = ("checkpoint=run", "protocol=perplexity", "data.path=other.txt", "hydra.run.dir=b")
    assert evaluate(*other, "data=corpus") == 2
    assert "the text is read as the run has read its own, and data.unknown is none of" in capsys.readouterr().err
    Path("other.txt").write_text(" \n")
    assert evaluate(*other) == 2
    assert "other.txt: no words" in capsys.readouterr().err


def test_other_checkpoints_have_no_perplexity(evaluate: Command, trained: Path, capsys: Any) -> None:
    Path("other.txt").write_text("one two\n")
    assert evaluate(f"checkpoint={trained}", "protocol=perplexity", "data.path=other.txt", "hydra.run.dir=b") == 2
    assert "is of no language model" in capsys.readouterr().err


def test_what_has_no_answer(tmp_path: Path) -> None:
    saved("full_softmax", tmp_path / "last.ckpt", unknown="drop")
    loaded = contrast.load(tmp_path / "last.ckpt")
    with pytest.raises(InputError, match="no word of the vocabulary"):
        loaded.perplexity("no such words")
    with pytest.raises(InputError, match="k must be 1 or more"):
        loaded.next_words("w0", k=0)
    assert loaded.next_words("", 1) == loaded.next_words("no such words", 1)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    torch.save({**checkpoint, "words": None}, tmp_path / "none.ckpt")
    with pytest.raises(InputError, match="does not hold its vocabulary"):
        contrast.load(tmp_path / "none.ckpt")
    torch.save({**checkpoint, "words": ["a"]}, tmp_path / "few.ckpt")
    with pytest.raises(InputError, match="11 classes has 1 words"):
        contrast.load(tmp_path / "few.ckpt")
