"""contrast-pretrain on text: word vectors that learn, leave, resume, and are evaluated."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, figures
from test_resume import differences

from contrast.data.text.vectors import load_vectors
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
    "model.span=2000",
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
    "words",
    [
        (),
        ("model.method=cbow", "model.lr=0.2"),
        ("model.workers=2",),
        ("head=nce",),
        ("head=sampled_softmax",),
        ("head=full_softmax", "trainer.max_epochs=1"),
        ("head=hierarchical_softmax",),
        ("head=hierarchical_softmax", "model.method=cbow", "model.lr=0.2"),
    ],
    ids=["skip-gram", "cbow", "two workers", "nce", "sampled softmax", "full softmax", "tree", "tree, cbow"],
)
def test_words_of_a_topic_come_together(pretrain: Command, corpus: Path, words: tuple[str, ...]) -> None:
    files = "evaluation.files=[vectors.txt]"
    assert pretrain(*SMALL, "trainer.max_epochs=3", *words, files, "hydra.run.dir=run") == 0
    names, vectors = load_vectors("run/vectors.safetensors")
    assert sorted(names) == sorted(word for topic in TOPICS for word in topic)
    same, other = together(vectors, names)
    assert same > other + 0.3
    told = figures("run")
    assert told["words_per_second"] > 0
    assert told["loss"] > 0
    assert torch.equal(load_vectors("run/vectors.txt")[1], vectors)


def test_one_worker_is_a_function_of_the_seed_and_resumes(pretrain: Command, corpus: Path) -> None:
    run = (*SMALL, "trainer.max_epochs=3")
    assert pretrain(*run, "hydra.run.dir=whole") == 0
    assert pretrain(*SMALL, "trainer.max_epochs=1", "hydra.run.dir=part") == 0
    parts = [torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("whole", "part")]
    assert list(differences(parts[0]["state_dict"], parts[1]["state_dict"])) != []
    assert pretrain(*run, "checkpoints.every_n_steps=2", "hydra.run.dir=again") == 0
    again = load_vectors("again/vectors.safetensors")[1]
    assert torch.equal(again, load_vectors("whole/vectors.safetensors")[1])
    kill = ("+callbacks.interrupt._target_=test_resume.Interrupt", "+callbacks.interrupt.at=9")
    with pytest.raises(RuntimeError, match="interrupted"):
        pretrain(*run, *kill, "+callbacks.interrupt.how=raise", "checkpoints.every_n_steps=2", "hydra.run.dir=cut")
    assert not Path("cut/metrics.json").exists()
    assert pretrain("resume=cut", "callbacks.interrupt.at=0") == 0
    assert torch.equal(load_vectors("cut/vectors.safetensors")[1], again)


def test_the_loss_of_a_run_is_the_mean_over_its_last_epoch(pretrain: Command, corpus: Path) -> None:
    words = ("trainer.max_epochs=2", "trainer.limit_train_batches=3", "model.block=16", "checkpoints.every_n_steps=1")
    assert pretrain(*SMALL, *words, "hydra.run.dir=whole") == 0
    rows = read_rows(Path("whole/metrics.jsonl"))
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 6
    assert min(losses[3:]) < figures("whole")["loss"] < max(losses[3:])
    kill = ("+callbacks.interrupt._target_=test_resume.Interrupt", "+callbacks.interrupt.at=5")
    with pytest.raises(RuntimeError, match="interrupted"):
        pretrain(*SMALL, *words, *kill, "+callbacks.interrupt.how=raise", "hydra.run.dir=cut")
    assert pretrain("resume=cut", "callbacks.interrupt.at=0") == 0
    assert figures("cut")["loss"] == figures("whole")["loss"]


def test_unknown_words_have_no_neighbours(pretrain: Command, corpus: Path, capsys: Any) -> None:
    few = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "evaluation.neighbours=[zebra]")
    assert pretrain(*SMALL, *few, "hydra.run.dir=run") == 0
    assert "zebra: none of the " in capsys.readouterr().out


def test_other_seeds_give_other_vectors(pretrain: Command, corpus: Path) -> None:
    for seed in (0, 1):
        assert pretrain(*SMALL, f"seed={seed}", "trainer.max_epochs=1", f"hydra.run.dir=run{seed}") == 0
    first, second = (load_vectors(f"run{seed}/vectors.safetensors")[1] for seed in (0, 1))
    assert not torch.equal(first, second)


def test_a_run_is_evaluated(pretrain: Command, evaluate: Command, corpus: Path, capsys: Any) -> None:
    Path("pairs.tsv").write_text("sun\tsky\t9\nship\tsea\t8\nsun\tsalt\t1\nport\toven\t0\nzebra\tsun\t2\n")
    inside = ("evaluation.pairs=pairs.tsv", "evaluation.neighbours=[sun]", "evaluation.k=3")
    assert pretrain(*SMALL, *inside, "hydra.run.dir=run", "metric=pairs_spearman", "direction=maximize") == 0
    told = figures("run")
    assert told["pairs_coverage"] == 0.8
    assert told["pairs_spearman"] > 0.5
    near = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("sun: "))
    assert {word.split()[0] for word in near.removeprefix("sun: ").split(", ")} == {"sky", "cloud", "rain"}
    assert evaluate("checkpoint=run", "protocol=words", "data.pairs=pairs.tsv", "hydra.run.dir=eval") == 0
    assert figures("eval")["pairs_spearman"] == pytest.approx(told["pairs_spearman"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data=digits", "model.span=5"), "images, and the model is one of text"),
        (("model.span=0",), "span 0"),
        (("negatives.sampler.power=-1",), "power"),
        (("data.min_count=100000",), "100000 times"),
        (("trainer.devices=2",), "one device, not on 2"),
        (("metric=accuracy",), "metric=accuracy will not be among the figures: loss, seconds, words_per_second"),
        (("evaluation.pairs=absent.tsv",), "absent.tsv cannot be read"),
        (("evaluation.analogies=absent.txt",), "absent.txt cannot be read"),
        (("evaluation.files=[vectors.foo]",), "not 'vectors.foo'"),
        (("~evaluation",), "as evaluation=words says"),
        (("evaluation=null",), "cannot be null on the command line"),
        (("optimizer=adagrad",), "WordVectors has no use for an optimizer: leave it out"),
        (("model.limit=0",), "more than 0 pairs an update, or with null not at all: got 0"),
        (("head=hierarchical_softmax", "+head.num_noise=5"), "Tree under NCE is no output layer"),
    ],
)
def test_what_does_not_fit_is_refused(
    pretrain: Command, corpus: Path, capsys: Any, words: tuple[str, ...], message: str
) -> None:
    settings = [word for word in SMALL if not (words[0] == "data=digits" and word.startswith("data."))]
    assert pretrain(*settings, *words, "hydra.run.dir=run") == 2
    assert message in capsys.readouterr().err
    assert not Path("run/metrics.jsonl").exists()  # before the first step


def test_text_needs_a_model_of_text(pretrain: Command, corpus: Path, capsys: Any) -> None:
    assert pretrain("data=corpus", "data.path=corpus.txt", "logger=none") == 2
    assert "experiment=skipgram" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(pretrain: Command, corpus: Path, capsys: Any) -> None:
    assert pretrain(*SMALL, "model.lr=1e30", "model.limit=null", "hydra.run.dir=run") == 2
    assert "take a lower lr" in capsys.readouterr().err


def test_debug_quick(pretrain: Command, corpus: Path) -> None:
    assert pretrain(*SMALL, "debug=quick", "hydra.run.dir=run") == 0
    assert len(load_vectors("run/vectors.safetensors")[0]) == 12
