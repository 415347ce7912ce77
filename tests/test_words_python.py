"""`contrast.words.train`: the numbers of the command from files, sentences and lists of words."""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from test_pretrain_text import write_corpus

import contrast
from contrast.errors import InputError
from contrast.run.metrics import read_rows

SMALL: dict[str, Any] = {"dim": 16, "subsample": 0, "chunk": 2000, "workers": 1, "epochs": 2, "min_count": 1}


class Sentences:
    """Read as often as one likes, as gensim wants it."""

    def __init__(self, file: Path, split: bool) -> None:
        self.file, self.split = file, split

    def __iter__(self) -> Iterator[Any]:
        for line in self.file.read_text().splitlines():
            yield line.split() if self.split else line


@pytest.mark.slow
def test_it_has_the_numbers_of_the_command(words: Command, workplace: Path) -> None:
    corpus = write_corpus(workplace / "größe.txt")
    same = ["encoder.num_features=16", "model.subsample=0", "model.chunk=2000", "model.workers=1"]
    run = ["data=corpus", f"data.path={corpus}", *same, "trainer.max_epochs=2", "data.min_count=1", "logger=none"]
    assert words(*run, "hydra.run.dir=run") == 0
    expected = contrast.load("run")
    for text in (corpus, str(corpus), [corpus], Sentences(corpus, True), Sentences(corpus, False)):
        found = contrast.words.train(text, **SMALL)
        assert found.words == expected.words
        assert torch.equal(found.vectors, expected.vectors)
    rows = [{"text": line, "id": number} for number, line in enumerate(corpus.read_text().splitlines())]
    for column in ({}, {"column": "text"}):
        assert torch.equal(contrast.words.train(rows, **SMALL, **column).vectors, expected.vectors)
    assert sorted(path.name for path in workplace.iterdir()) == ["cache", "größe.txt", "run"]  # nothing else is left


def test_settings_of_gensim_the_rest_of_the_command_line_and_a_folder(workplace: Path) -> None:
    corpus = write_corpus(workplace / "corpus.txt", 90)
    names = {"vector_size": 8, "alpha": 0.05, "sample": 0, "negative": 3, "ns_exponent": 0.5, "output": "nce"}
    few = ("trainer.log_every_n_steps=3", "trainer.limit_train_batches=1")
    found = contrast.words.train(corpus, *few, run_dir="mine", epochs=1, **names)
    run = contrast.load("mine")
    assert torch.equal(run.vectors, found.vectors)
    found.save("v.bin")
    assert torch.equal(contrast.load("v.bin").vectors, found.vectors)
    config = contrast.cli.python.Run(Path("mine")).config
    assert (config["encoder"]["num_features"], config["model"]["lr"], config["table"]["num_noise"]) == (8, 0.05, 3)
    assert (config["negatives"]["sampler"]["power"], config["trainer"]["log_every_n_steps"]) == (0.5, 3)


def test_the_next_item_of_a_session(workplace: Path) -> None:
    """The example of docs/words.md."""
    page = Path(contrast.__file__).parents[1] / "docs" / "words.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), flags=re.S | re.M)
    names: dict[str, Any] = {}
    exec(next(block for block in blocks if "recall_at_10" in block), names)
    assert names["recall_at_10"] > 0.85


def test_a_run_that_learns_nothing_is_an_error(workplace: Path) -> None:
    draw = random.Random(0)
    sessions = [[f"item{draw.randrange(60)}" for _ in range(8)] for _ in range(5000)]
    said = r"nothing was learned: the loss is 4\.1\d* and that of an untrained model 4.1589, over .* pairs; "
    with pytest.raises(InputError, match=rf"{said}subsample=0.0001 keeps \d,\d* of 40,000 words in an epoch \(8.\d%\)"):
        contrast.words.train(sessions, subsample=1e-4, epochs=2, workers=1, run_dir="run")
    assert not Path("run/vectors.safetensors").exists()


def test_random_events_end_with_a_warning(workplace: Path, capsys: Any) -> None:
    draw = random.Random(0)
    events = [draw.randrange(60) for _ in range(40_000)]
    steps = [each // 8 * 8 + draw.randrange(8) for each in events for _ in range(4)]  # within one of eight groups
    for text, number in ((events, 8), (steps, 4)):
        sentences = [[f"item{each}" for each in text[i : i + number]] for i in range(0, 40_000, number)]
        contrast.words.train(sentences, epochs=5, workers=1)
        assert ("hardly more than how often words occur: the loss is 2.7" in capsys.readouterr().out) == (number == 8)


def test_a_full_softmax_does_not_overshoot(workplace: Path) -> None:
    """Few classes have most of the probability when a training begins, and their rows most of the steps."""
    draw = random.Random(0)
    topics = [[f"w{topic}_{i}" for i in range(50)] for topic in range(8)]
    frequency = [1 / (i + 1) for i in range(50)]
    sentences = [draw.choices(draw.choice(topics), frequency, k=20) for _ in range(2000)]
    settings: dict[str, Any] = {"dim": 8, "epochs": 4, "min_count": 1, "subsample": 0, "workers": 1, "chunk": 10_000}
    contrast.words.train(sentences, "output=full_softmax", **settings, run_dir="run")
    losses = [row["train/loss"] for row in read_rows(Path("run/metrics.jsonl")) if "train/loss" in row]
    assert losses[-1] < 3.4 < max(losses) < 6.1  # log 400 = 5.99, and 3.2 if the topic is known


def test_what_it_refuses(workplace: Path) -> None:
    with pytest.raises(InputError, match="windw: no setting of word vectors; did you mean 'window'"):
        contrast.words.train("corpus.txt", windw=3)
    with pytest.raises(InputError, match=r'sg is a setting of gensim: .* method="cbow" is sg=0'):
        contrast.words.train("corpus.txt", sg=0)
    with pytest.raises(InputError, match='hs is a setting of gensim: output="hierarchical_softmax" is hs=1'):
        contrast.words.train("corpus.txt", hs=1)
    with pytest.raises(InputError, match=r"corpus.txt does not exist"):
        contrast.words.train("corpus.txt")
    with pytest.raises(InputError, match="sentence 2: the word 'new york'"):
        contrast.words.train([["a"], ["new york"]])
    with pytest.raises(InputError, match="sentence 1 is of type int"):
        contrast.words.train([1, 2])
    with pytest.raises(InputError, match="no text in the column 'text': title"):
        contrast.words.train([{"title": "a"}])
    with pytest.raises(InputError, match="all must be of one kind"):
        contrast.words.train([["a"], "b"])
    with pytest.raises(InputError, match="no sentences"):
        contrast.words.train([])
    with pytest.raises(InputError, match="sentence 1 is of type bytes"):
        contrast.words.train([b"the king"])
    for text, said in ((None, "not NoneType"), ({"train": [], "test": []}, "of train, test: give one")):
        with pytest.raises(InputError, match=said):
            contrast.words.train(text)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"a path of [\d,]* characters"):
        contrast.words.train("the king and the queen " * 1000)
    with pytest.raises(InputError, match="dim and vector_size are one setting"):
        contrast.words.train([["a"]], dim=3, vector_size=4)
    with pytest.raises(InputError, match='minn is a setting of n-grams: encoder="subwords"'):
        contrast.words.train([["a"]], minn=3)
    with pytest.raises(InputError, match=r"evaluation.output=x\.bin is a file in the run folder"):
        contrast.words.train([["a"]], "evaluation.output=x.bin")
    assert [path.name for path in workplace.iterdir() if path.name != "cache"] == []


def test_ngrams_are_in_a_compressed_file_too(workplace: Path) -> None:
    sentences = [["kings", "kingdom", "walking", "walked"]] * 50
    found = contrast.words.train(sentences, **SMALL, encoder="subwords", buckets=1000)
    for name in ("a.safetensors", "a.safetensors.gz"):
        found.save(name)
        assert torch.equal(contrast.load(name)["king"], found["king"])
    Path("a.floret").touch()
    with pytest.raises(InputError, match="vectors of n-grams and no words"):
        contrast.load("a.floret")
