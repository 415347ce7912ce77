"""contrast-words: word vectors that learn, leave, resume, and are evaluated."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, figures
from test_resume import TRUST, differences

import contrast
from contrast.data.text.vectors import load_vectors
from contrast.deploy.words import WordEmbeddings
from contrast.encoders.ngrams import ngram_buckets
from contrast.errors import InputError
from contrast.run.metrics import read_rows

TOPICS = (("sun", "sky", "cloud", "rain"), ("ship", "sea", "port", "crew"), ("bread", "oven", "salt", "flour"))


def write_corpus(path: Path, lines: int = 900) -> Path:
    """Lines of one topic each: words of a topic stand near each other, and near no other."""
    generator = torch.Generator().manual_seed(0)
    written = []
    for line in range(lines):
        topic = TOPICS[line % len(TOPICS)]
        written.append(" ".join(topic[i] for i in torch.randint(len(topic), (12,), generator=generator).tolist()))
    path.write_text("\n".join(written) + "\n")
    return path


SMALL = (
    "experiment=skipgram",
    "data.path=corpus.txt",
    "encoder.num_features=16",
    "model.subsample=0",
    "model.chunk=2000",
    "model.workers=1",
    "model.block=8",
    "model.blocks=2",
    "trainer.log_every_n_steps=1",
    "logger=none",
)


@pytest.fixture
def corpus(workplace: Path) -> Path:
    return write_corpus(workplace / "corpus.txt")


def together(vectors: torch.Tensor, words: tuple[str, ...]) -> tuple[float, float]:
    """Mean cosine of words of one topic, and of words of two."""
    unit = torch.nn.functional.normalize(vectors, dim=1)
    topic = torch.tensor([next(n for n, each in enumerate(TOPICS) if word in each) for word in words])
    cosine, same = unit @ unit.T, topic[:, None] == topic
    off = ~torch.eye(len(words), dtype=torch.bool)
    return float(cosine[same & off].mean()), float(cosine[~same].mean())


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("model.method=cbow", "model.lr=0.2"),
        ("model.workers=2",),
        pytest.param(("output=nce",), marks=pytest.mark.slow),
        pytest.param(("output=sampled_softmax",), marks=pytest.mark.slow),
        pytest.param(("output=full_softmax", "trainer.max_epochs=1"), marks=pytest.mark.slow),
        ("output=hierarchical_softmax",),
        pytest.param(("output=hierarchical_softmax", "model.method=cbow", "model.lr=0.2"), marks=pytest.mark.slow),
        pytest.param(("encoder=subwords", "model.workers=2"), marks=pytest.mark.slow),
    ],
    ids=[
        "skip-gram",
        "cbow",
        "two workers",
        "nce",
        "sampled softmax",
        "full softmax",
        "tree",
        "tree, cbow",
        "subwords",
    ],
)
def test_words_of_a_topic_come_together(words: Command, corpus: Path, settings: tuple[str, ...]) -> None:
    files = "evaluation.files=[vectors.txt]"
    assert words(*SMALL, "trainer.max_epochs=3", *settings, files, "hydra.run.dir=run") == 0
    names, vectors = load_vectors("run/vectors.safetensors")
    assert sorted(names) == sorted(word for topic in TOPICS for word in topic)
    same, other = together(vectors, names)
    assert same > other + 0.3
    told = figures("run")
    assert told["words_per_second"] > 0
    assert told["loss"] > 0
    assert torch.equal(load_vectors("run/vectors.txt")[1], vectors)


@pytest.mark.slow
def test_one_worker_is_a_function_of_the_seed_and_resumes(words: Command, corpus: Path) -> None:
    run = (*SMALL, "trainer.max_epochs=3")
    assert words(*run, "hydra.run.dir=whole") == 0
    assert words(*SMALL, "trainer.max_epochs=1", "hydra.run.dir=part") == 0
    parts = [torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("whole", "part")]
    assert list(differences(parts[0]["state_dict"], parts[1]["state_dict"])) != []
    assert words(*run, "checkpoints.every_n_steps=2", "hydra.run.dir=again") == 0
    again = load_vectors("again/vectors.safetensors")[1]
    assert torch.equal(again, load_vectors("whole/vectors.safetensors")[1])
    kill = ("+callbacks.interrupt._target_=test_resume.Interrupt", "+callbacks.interrupt.at=9")
    with pytest.raises(RuntimeError, match="interrupted"):
        words(*run, *kill, "+callbacks.interrupt.how=raise", "checkpoints.every_n_steps=2", "hydra.run.dir=cut")
    assert not Path("cut/metrics.json").exists()
    assert words("resume=cut", TRUST, "callbacks.interrupt.at=0") == 0
    assert torch.equal(load_vectors("cut/vectors.safetensors")[1], again)


def test_the_loss_of_a_run_is_the_mean_over_its_last_epoch(words: Command, corpus: Path) -> None:
    short = ("trainer.max_epochs=2", "trainer.limit_train_batches=3", "model.block=16", "checkpoints.every_n_steps=1")
    assert words(*SMALL, *short, "hydra.run.dir=whole") == 0
    rows = read_rows(Path("whole/metrics.jsonl"))
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 6
    assert min(losses[3:]) < figures("whole")["loss"] < max(losses[3:])
    kill = ("+callbacks.interrupt._target_=test_resume.Interrupt", "+callbacks.interrupt.at=5")
    with pytest.raises(RuntimeError, match="interrupted"):
        words(*SMALL, *short, *kill, "+callbacks.interrupt.how=raise", "hydra.run.dir=cut")
    assert words("resume=cut", TRUST, "callbacks.interrupt.at=0") == 0
    assert figures("cut")["loss"] == figures("whole")["loss"]


def test_subsampling_that_leaves_too_little_is_reported(words: Command, workplace: Path, capsys: Any) -> None:
    """With three words each is a third of the text, so that the usual threshold keeps 2 % of it."""
    Path("corpus.txt").write_text("a b c\n" * 100)
    run = (*SMALL, "trainer.max_epochs=1", "model.subsample=1e-4")
    assert words(*run, "hydra.run.dir=run") == 2
    told = capsys.readouterr()
    assert "; 5, 2%, are trained on" in told.out
    assert "subsample=0.0001" in told.out
    assert "no pairs of words were left to train on: subsample=0.0001 keeps 5 of 300 words in an epoch" in told.err
    assert not Path("run/metrics.json").exists()
    assert words(*run, "model.subsample=0", "hydra.run.dir=all") == 0
    assert "warning: subsample" not in capsys.readouterr().out


def test_a_run_folder_in_the_home_folder_and_words_that_are_numbers(
    words: Command, workplace: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(workplace / "home"))
    Path("corpus.txt").write_text("10 150 x\n" * 100)
    run = (*SMALL, "trainer.max_epochs=1", "model.subsample=0", "hydra.run.dir=~/runs/a")
    assert words(*run, "evaluation.neighbours=[10,150,7]") == 0
    assert (workplace / "home" / "runs" / "a" / "metrics.json").is_file()
    told = capsys.readouterr().out
    assert re.search(r"^10: (150|x) ", told, flags=re.M)
    assert "7: none of the 3 words" in told


def test_a_small_vocabulary_is_not_thinned_out_by_default(words: Command, workplace: Path, capsys: Any) -> None:
    Path("corpus.txt").write_text("a b c\n" * 100)
    assert words(*SMALL, "trainer.max_epochs=1", "model.subsample=null", "hydra.run.dir=run") == 0
    assert "; 300, 100%, are trained on" in capsys.readouterr().out


@pytest.mark.slow
def test_training_goes_on_with_more_words(words: Command, corpus: Path) -> None:
    still = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "model.lr=1e-30", "model.lr_end=0")
    assert words(*SMALL, "trainer.max_epochs=1", "evaluation.output=out.bin.gz", "hydra.run.dir=run") == 0
    with open("corpus.txt", "a") as file:
        file.write("moon star\n" * 10)
    go_on = ("model.vectors=run", "model.output_vectors=run/out.bin.gz", "evaluation.output=out.txt")
    assert words(*SMALL, *still, *go_on, "hydra.run.dir=more") == 0
    for before, after in (("vectors.safetensors", "vectors.safetensors"), ("out.bin.gz", "out.txt")):
        old, new = (dict(zip(*load_vectors(file), strict=True)) for file in (f"run/{before}", f"more/{after}"))
        assert set(new) - set(old) == {"moon", "star"}
        assert all(torch.equal(new[word], vector) for word, vector in old.items())
    assert words(*SMALL, *still, "model.vectors=run", "encoder.num_features=8", "hydra.run.dir=no") == 2


def test_unknown_words_have_the_vectors_of_their_ngrams(
    words: Command, evaluate: Command, corpus: Path, capsys: Any
) -> None:
    Path("pairs.tsv").write_text("sun\tskye\t9\nship\tseas\t8\nsun\tsalt\t1\nclouds\toven\t0\nqqq\tsun\t2\n")
    few = ("trainer.max_epochs=1", "encoder=subwords", "encoder.buckets=500", "evaluation.pairs=pairs.tsv")
    assert words(*SMALL, *few, "evaluation.neighbours=[clouds,qqq]", "hydra.run.dir=run") == 0
    out = capsys.readouterr().out
    near = next(line for line in out.splitlines() if line.startswith("clouds: "))
    assert " cloud " in near
    assert "qqq: none of the 12 words" in out
    told = figures("run")
    assert (told["pairs_coverage"], told["pairs_unknown"]) == (0.8, pytest.approx(0.6))
    assert evaluate("checkpoint=run", "protocol=words", "data.pairs=pairs.tsv", "hydra.run.dir=eval") == 0
    assert {name: figures("eval")[name] for name in told if name.startswith("pairs")} == pytest.approx(
        {name: value for name, value in told.items() if name.startswith("pairs")}
    )
    found = contrast.load("run")
    assert isinstance(found, WordEmbeddings)
    assert "clouds" not in found
    assert found.similarity("clouds", "cloud") == pytest.approx(dict(found.most_similar("clouds"))["cloud"], abs=1e-5)
    found.save("copy.safetensors")
    assert torch.equal(contrast.load("copy.safetensors")["clouds"], found["clouds"])
    with pytest.raises(InputError, match="'qqq' is none of the 12 words, and shares no n-gram with them"):
        found["qqq"]
    pytest.importorskip("gensim")
    theirs = found.to_keyed_vectors()
    for word in ("clouds", "cloud", "skye"):
        assert theirs[word] == pytest.approx(found[word].numpy(), abs=1e-6)
    assert theirs.index_to_key == list(found.words)
    assert theirs.similarity("clouds", "oven") == pytest.approx(found.similarity("clouds", "oven"), abs=1e-5)


def test_words_and_ngrams_in_one_small_table(words: Command, corpus: Path, capsys: Any) -> None:
    """As in floret; the .floret file has a line for each bucket, of which a word's vector is the mean."""
    files = "evaluation.files=[vectors.floret]"
    small = ("trainer.max_epochs=1", "encoder=floret", "encoder.buckets=60", files)
    assert words(*SMALL, *small, "hydra.run.dir=run") == 0
    found = contrast.load("run")
    assert isinstance(found, WordEmbeddings)
    head, *lines = Path("run/vectors.floret").read_text().splitlines()
    width = found.vectors.shape[1]
    assert head == f"60 {width} 3 6 2 2166136261 < >"
    table = torch.tensor([[float(x) for x in line.split()] for line in lines])
    assert table[:, 0].tolist() == list(range(60))
    for word in ("sun", "clouds"):  # of which the second is unknown
        mean = table[ngram_buckets([word], 3, 6, 60, 2)[0], 1:].mean(dim=0)
        torch.testing.assert_close(found[word], mean)
    found.save("copy.floret")
    assert Path("copy.floret").read_text() == Path("run/vectors.floret").read_text()
    found.save("copy.safetensors")
    assert torch.equal(contrast.load("copy.safetensors")["clouds"], found["clouds"])
    with pytest.raises(InputError, match=r"no words: take the \.safetensors"):
        load_vectors("copy.floret")
    with pytest.raises(InputError, match="as floret does"):
        found.to_keyed_vectors()
    capsys.readouterr()
    assert words(*SMALL, "trainer.max_epochs=1", files, "hydra.run.dir=no") == 2
    assert "vectors.floret has the n-grams of encoder=floret" in capsys.readouterr().err
    assert not Path("no").exists()


def test_unknown_words_have_no_neighbours(words: Command, corpus: Path, capsys: Any) -> None:
    few = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "evaluation.neighbours=[zebra]")
    assert words(*SMALL, *few, "hydra.run.dir=run") == 0
    assert "zebra: none of the " in capsys.readouterr().out


def test_other_seeds_give_other_vectors(words: Command, corpus: Path) -> None:
    for seed in (0, 1):
        assert words(*SMALL, f"seed={seed}", "trainer.max_epochs=1", f"hydra.run.dir=run{seed}") == 0
    first, second = (load_vectors(f"run{seed}/vectors.safetensors")[1] for seed in (0, 1))
    assert not torch.equal(first, second)


def test_a_run_is_evaluated(words: Command, evaluate: Command, corpus: Path, capsys: Any) -> None:
    Path("pairs.tsv").write_text("sun\tsky\t9\nship\tsea\t8\nsun\tsalt\t1\nport\toven\t0\nzebra\tsun\t2\n")
    inside = ("evaluation.pairs=pairs.tsv", "evaluation.neighbours=[sun]", "evaluation.k=3")
    assert words(*SMALL, *inside, "hydra.run.dir=run", "metric=pairs_spearman", "direction=maximize") == 0
    told = figures("run")
    assert told["pairs_coverage"] == 0.8
    assert told["pairs_spearman"] > 0.5
    near = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("sun: "))
    assert {word.split()[0] for word in near.removeprefix("sun: ").split(", ")} == {"sky", "cloud", "rain"}
    assert evaluate("checkpoint=run", "protocol=words", "data.pairs=pairs.tsv", "hydra.run.dir=eval") == 0
    assert figures("eval")["pairs_spearman"] == pytest.approx(told["pairs_spearman"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("data=digits", "~data.path"), "is of images: contrast-pretrain data=digits"),
        (("model.chunk=0",), "chunk 0"),
        (("+negatives.sampler.powr=1",), "powr"),
        (("output=adaptive_softmax",), "a Table or a Tree: output=hierarchical_softmax"),
        (("head._target_=contrast.heads.AdaptiveSoftmax",), "head"),
        (("evaluation.output=out.bin", "output=hierarchical_softmax"), "a Tree has none"),
        (("model.vectors=absent.bin",), "absent.bin does not exist"),
        (("model.vectors=absent.bin", "encoder=subwords"), "model.vectors has no vectors of n-grams"),
        (("encoder=subwords", "encoder.minn=7"), "1 <= minn <= maxn letters and 1 bucket at least: 7, 6, 2000000"),
        (("encoder=floret", "encoder.hashes=5"), "at most 4 buckets, not hashes=5"),
        (("encoder=subwords", "head.cosine=true"), "n-grams are trained in closed form"),
        (("data.min_count=100000",), "100000 times"),
        (
            ("trainer.devices=2", "model.workers=2", "model.compiled=false"),
            "each of several ranks is one process: model.workers=1, not 2",
        ),
        (("data.over_ranks=true",), "data.over_ranks=true is for ranks that torchrun starts"),
        (("metric=accuracy",), "metric=accuracy will not be among the metrics: loss, seconds, words_per_second"),
        (("evaluation.pairs=absent.tsv",), "absent.tsv cannot be read"),
        (("evaluation.analogies=absent.txt",), "absent.txt cannot be read"),
        (("evaluation.files=[vectors.foo]",), "not 'vectors.foo'"),
        (("~evaluation",), "as evaluation=words says"),
        (("evaluation=null",), "cannot be null on the command line"),
        (("+optimizer=adagrad",), "WordVectors has no use for an optimizer: leave it out"),
        (("model.max_pairs_per_row=0",), "more than 0, or null for no limit, got 0"),
        (("output=hierarchical_softmax", "+head.num_noise=5"), "Tree under NCE is no output layer"),
    ],
)
def test_what_does_not_fit_is_refused(
    words: Command, corpus: Path, capsys: Any, settings: tuple[str, ...], message: str
) -> None:
    assert words(*SMALL, *settings, "hydra.run.dir=run") == 2
    assert message in capsys.readouterr().err
    assert not Path("run/metrics.jsonl").exists()  # before the first step


@pytest.mark.parametrize("named", ["experiment=skipgram", "experiment=language_model,skipgram_docs", "data=docstrings"])
def test_text_belongs_to_the_other_command(pretrain: Command, capsys: Any, named: str) -> None:
    assert pretrain("-m", named, "logger=none") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {named.partition(',')[0]} is of text: contrast-words ")


def test_a_run_on_text_is_not_resumed_by_the_other_command(
    pretrain: Command, words: Command, corpus: Path, capsys: Any
) -> None:
    assert words(*SMALL, "trainer.max_epochs=1", "hydra.run.dir=run") == 0
    assert pretrain("resume=run") == 2
    assert "contrast-words trains on text" in capsys.readouterr().err


def test_word_vectors_need_a_known_number_of_steps(words: Command, corpus: Path, capsys: Any) -> None:
    endless = ("trainer.max_epochs=-1", "+trainer.max_time=00:00:00:01")
    assert words(*SMALL, *endless, "hydra.run.dir=run") == 2
    assert "a known number of steps" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(words: Command, corpus: Path, capsys: Any) -> None:
    assert words(*SMALL, "model.lr=1e30", "model.max_pairs_per_row=null", "hydra.run.dir=run") == 2
    assert "take a lower lr" in capsys.readouterr().err


def test_debug_quick(words: Command, corpus: Path) -> None:
    assert words(*SMALL, "debug=quick", "hydra.run.dir=run") == 0
    assert len(load_vectors("run/vectors.safetensors")[0]) == 12


def test_debug_quick_of_a_language_model(words: Command, corpus: Path) -> None:
    small = ("data=corpus", f"data.path={corpus}", "model.length=5", "model.batch=8", "encoder.hidden=8")
    small += ("trainer.accelerator=cpu", "hydra.run.dir=run")
    assert words("model=language_model", "debug=quick", *small) == 0
    assert figures("run")["held_out_words"] > 0
