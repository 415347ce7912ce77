"""The next-word model: its loss by definition, its output layers, sparse gradients, its runs."""

import itertools
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Command, figures
from torch import Tensor

import contrast
from contrast.data.loader import Span
from contrast.data.text.corpus import Corpus
from contrast.data.text.vocabulary import BORDER
from contrast.encoders import GRU
from contrast.errors import InputError
from contrast.heads import NCE, AdaptiveSoftmax, InfoNCE, LearnedBias
from contrast.negatives import InBatch, Table, Targets, Tree
from contrast.run.metrics import read_rows
from contrast.samplers import LogUniform, Poisson, Unigram
from contrast.training.callbacks.held_out import HeldOut
from contrast.training.callbacks.progress import Throughput
from contrast.words import LanguageModel
from contrast.words.frequencies import start_at_frequencies

V, DIM = 9, 6  # classes; features with the last one, 1
COUNTS = torch.tensor([9, 50, 30, 20, 10, 8, 5, 3, 1])  # the first is the end of a line
APPROXIMATIONS = (
    "full_softmax",
    "nce",
    "sampled_softmax",
    "negative_sampling",
    "hierarchical_softmax",
    "adaptive_softmax",
)


def model(negatives: object, head: object, **options: object) -> LanguageModel:
    torch.manual_seed(0)
    options = {"length": 4, "batch": 3, **options}
    return LanguageModel(GRU(V, 4, DIM - 1), negatives, head, COUNTS, torch.optim.Adagrad, **options)


def full(**options: object) -> LanguageModel:
    return model(Table(V, DIM), InfoNCE(1.0, cosine=False), **options)


def span(length: int = 17) -> Span:
    ids = torch.randint(V - 1, (length,), generator=torch.Generator().manual_seed(3))
    ids[6] = BORDER
    return Span(ids)


# --- the loss


def test_the_loss_of_the_full_softmax_is_cross_entropy_with_gradients() -> None:
    made = full()
    loss = made.training_step(span(), 0)["loss"]
    ids = span().ids + 1  # the end of a line, -1, is class 0
    losses = []
    for start in (0, 5, 10):  # windows of 5 words, the last 2 of 17 left over
        state = None
        for place in range(start, start + 4):
            features, state = made.encoder(ids[None, place : place + 1], state)
            logits = made.negatives.vectors @ features[0, 0]
            losses.append(F.cross_entropy(logits, ids[place + 1]))
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(loss, expected)
    parameters = [made.negatives.vectors, *made.encoder.gru.parameters()]
    for one, other in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_windows_of_a_span() -> None:
    made = full()
    assert made.chunk == 15
    assert made.windows(torch.arange(17)).tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]
    assert made.windows(torch.arange(3)).tolist() == [[0, 1, 2]]
    assert [made.count(span(length)) for length in (17, 10, 7)] == [12, 8, 4]
    assert made.count(Span(torch.arange(3))) == 2


def test_a_span_of_one_place_changes_nothing() -> None:
    made = full()
    loss = made.training_step(Span(torch.tensor([2])), 0)["loss"]
    loss.backward()
    assert loss == 0
    assert all(not (p.grad.to_dense() if p.grad.is_sparse else p.grad).any() for p in made.parameters())


def test_classes_are_the_words_and_the_end_of_a_line() -> None:
    corpus = Corpus("c", torch.tensor([0, 1, -1, 0, -1], dtype=torch.int32), ("a", "b"), torch.tensor([2, 1]), 3, 2)
    assert LanguageModel.counts(corpus).tolist() == [2, 2, 1]
    assert full().classes(torch.tensor([3, BORDER, 0], dtype=torch.int32)).tolist() == [4, 0, 1]


def test_draws_depend_on_seed_and_batch_number_alone() -> None:
    made = model(Table(V, DIM, LogUniform(V), 3), InfoNCE(1.0, cosine=False))

    def loss(number: int, seed: int = 0) -> float:
        made.batch_number, made.seed = number, seed
        return made.training_step(span(), 0)["loss"].item()

    assert loss(1) == loss(1)
    assert len({loss(1), loss(2), loss(1, seed=1)}) == 3


# --- where it begins


@pytest.mark.parametrize(
    ("negatives", "head"),
    [
        (Table(V, DIM), InfoNCE(1.0, cosine=False)),
        (Table(V, DIM, Unigram(COUNTS), 4), NCE(1.0, cosine=False, bias=-2.0)),
        (Tree(COUNTS, DIM), NCE(1.0, cosine=False)),
        (Targets(), AdaptiveSoftmax(DIM, V, [2, 5], div_value=2.0)),
    ],
)
def test_it_begins_as_the_unigram_model(negatives: object, head: object) -> None:
    made = model(negatives, head)
    query = F.one_hot(torch.tensor([DIM - 1] * V), DIM).float()  # no context: the constant feature alone
    told = made.next_word().log_probs(query, torch.arange(V))
    torch.testing.assert_close(told["log_prob"].exp(), COUNTS.double() / COUNTS.sum(), rtol=1e-4, atol=1e-6)
    if "log_z" in told:
        torch.testing.assert_close(told["log_z"], torch.zeros_like(told["log_z"]), atol=1e-5, rtol=0)


def test_negative_sampling_begins_at_its_optimum() -> None:
    noise = Unigram(COUNTS, power=0.5)
    made = model(Table(V, DIM, noise, 4), NCE(1.0, cosine=False, correction=False))
    expected = (COUNTS / COUNTS.sum()).log() - noise.log_prob(torch.arange(V)) - math.log(4)
    torch.testing.assert_close(made.negatives.vectors[:, -1].detach(), expected)
    query = F.one_hot(torch.tensor([DIM - 1] * V), DIM).float()
    told = made.next_word().log_probs(query, torch.arange(V))
    torch.testing.assert_close(told["log_prob_with_log_q"].exp(), COUNTS.double() / COUNTS.sum(), rtol=1e-4, atol=1e-6)


def expected_loss(negatives: Any, head: Any, share: Tensor) -> Tensor:
    """Over the classes, and over all that a sampler may draw, of a query with the constant feature alone."""
    n, sampler = len(share), getattr(negatives, "sampler", None)
    outcomes: list[tuple[float, list[int]]] = []
    if sampler is None:
        outcomes.append((1.0, []))
    elif isinstance(sampler, Poisson):
        pi = sampler.log_pi.double().exp().tolist()
        for sample in itertools.product((False, True), repeat=n):
            chance = math.prod(p if there else 1 - p for p, there in zip(pi, sample, strict=True))
            outcomes.append((chance, [i for i in range(n) if sample[i]]))
    else:
        q = sampler.log_prob(torch.arange(n)).double().exp().tolist()
        draws = itertools.product(range(n), repeat=negatives.draws)
        outcomes += [(math.prod(q[i] for i in drawn), list(drawn)) for drawn in draws]
    total = torch.zeros((), dtype=torch.float64)
    query = torch.zeros(1, n, negatives.vectors.shape[1], dtype=torch.float64)
    query[..., -1] = 1
    for chance, drawn in outcomes:
        with pytest.MonkeyPatch.context() as patch:
            if sampler is not None:
                patch.setattr(sampler, "draw", lambda *_, drawn=drawn: torch.tensor(drawn, dtype=torch.long))
            ((asking, candidates),) = negatives(query, None, torch.arange(n))
        total = total + chance * share @ head(asking, candidates)[0]
    return total


@pytest.mark.parametrize("temperature", [1.0, 0.25, 2.0])
@pytest.mark.parametrize(
    ("source", "head"),
    [
        ("table", lambda t: InfoNCE(t, cosine=False)),
        ("unigram", lambda t: InfoNCE(t, cosine=False)),
        ("poisson", lambda t: InfoNCE(t, cosine=False)),
        ("table", lambda t: NCE(t, cosine=False)),
        ("table", lambda t: NCE(t, cosine=False, num_noise=2, correction=False)),
        ("table", lambda t: NCE(t, cosine=False, num_noise=2)),
        ("unigram", lambda t: NCE(t, cosine=False, bias=-0.5)),
        ("unigram", lambda t: NCE(t, cosine=False, bias=-0.5, num_noise=3)),
        ("unigram", lambda t: NCE(t, cosine=False, bias=LearnedBias(0.5), correction=False)),
        ("unigram", lambda t: NCE(t, cosine=False, num_noise=3, correction=False)),
        ("poisson", lambda t: NCE(t, cosine=False, bias=0.5)),
        ("poisson", lambda t: NCE(t, cosine=False, bias=0.5, correction=False)),
        ("everything", lambda t: NCE(t, cosine=False, num_noise=2)),
        ("everything", lambda t: NCE(t, cosine=False, num_noise=2, correction=False)),
        ("tree", lambda t: NCE(t, cosine=False)),
    ],
)
def test_it_begins_where_its_expected_loss_is_least(source: str, head: Any, temperature: float) -> None:
    """The gradient of the biases is 0, and of biases a little away it is not."""
    counts = torch.tensor([5, 9, 4, 1])
    negatives = {
        "table": lambda: Table(4, 2, std=0),
        "unigram": lambda: Table(4, 2, Unigram(counts), 2, std=0),
        "poisson": lambda: Table(4, 2, Poisson([0.3, 0.9, 0.5, 0.2]), std=0),
        "everything": lambda: Table(4, 2, Poisson([1, 1, 1, 1]), std=0),
        "tree": lambda: Tree(counts, 2),
    }[source]().double()
    scores = head(temperature)
    start_at_frequencies(negatives, scores, counts)
    share = counts.double() / counts.sum()
    for away, most, least in ((0.0, 1e-6, 0.0), (0.1, 1.0, 1e-4)):
        with torch.no_grad():
            negatives.vectors[0, -1] += away
        (grad,) = torch.autograd.grad(expected_loss(negatives, scores, share), negatives.vectors)
        assert least <= float(grad[:, -1].abs().max()) <= most


def test_the_optimum_of_nce_under_poisson_draws_is_the_log_odds() -> None:
    """By enumeration of all samples: the gradient is 0 at log(p / (1 - p)), and not at log p."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    negatives = Table(3, 2, Poisson([0.3, 0.9, 0.5]), std=0).double()
    slopes = []
    for scores in (p.logit(), p.log()):
        negatives.vectors.data[:, -1] = scores
        (grad,) = torch.autograd.grad(expected_loss(negatives, NCE(1.0, cosine=False), p), negatives.vectors)
        slopes.append(float(grad[:, -1].abs().max()))
    assert slopes[0] < 1e-12
    assert slopes[1] > 0.01


@pytest.mark.parametrize("negatives", [Table(V, DIM), Tree(COUNTS, DIM)])
def test_a_cosine_has_no_bias_to_begin_with(negatives: Any) -> None:
    with pytest.raises(InputError, match=r"cosines have no bias .* model\.frequencies=false"):
        model(negatives, NCE(0.2))
    assert not model(Table(V, DIM, std=0), NCE(0.2), frequencies=False).negatives.vectors.any()


def test_a_class_that_is_never_drawn_has_no_best_score() -> None:
    for sampler in (Unigram([1, 0, 2, *[1] * (V - 3)]), Poisson([0.5, 0, *[0.5] * (V - 2)])):
        with pytest.raises(InputError, match="class 1 of 9 is never drawn"):
            model(Table(V, DIM, sampler), NCE(1.0, cosine=False, correction=False))
        made = model(Table(V, DIM, sampler), NCE(1.0, cosine=False))
        assert bool(made.negatives.vectors.isfinite().all())


def test_it_may_begin_without_the_frequencies() -> None:
    assert full(frequencies=False).negatives.vectors[:, -1].std() < 0.1


def test_without_held_out_text_there_are_no_figures() -> None:
    corpus = Corpus("c", torch.tensor([0, -1], dtype=torch.int32), ("a",), torch.tensor([1]), 1, 1)
    assert full().metrics(corpus, torch.device("cpu")) == {}
    assert "no text was held out" in full().table({})


def test_the_table_of_figures() -> None:
    found = {"perplexity": 1234.5, "perplexity_with_log_q": 99.0, "log_z": 1.5, "log_z_std": 0.25}
    told = full().table(found | {"unigram_perplexity": 700.0, "held_out_words": 20_000})
    assert [line.split()[-1] for line in told.splitlines()] == [
        "1,234.50",
        "99.00",
        "1.50",
        "0.25",
        "700.00",
        "20,000.00",
    ]


# --- sparse gradients


def sources(sparse: bool) -> dict[str, tuple[object, object]]:
    torch.manual_seed(5)
    softmax, logistic = InfoNCE(1.0, cosine=False), NCE(1.0, cosine=False)
    tree = Tree(COUNTS, DIM, sparse=sparse)
    torch.nn.init.normal_(tree.vectors)
    return {
        "draws": (Table(V, DIM, LogUniform(V), 5, std=1.0, sparse=sparse), softmax),
        "poisson": (Table(V, DIM, Poisson(LogUniform(V), 4), std=1.0, sparse=sparse), softmax),
        "nce": (Table(V, DIM, LogUniform(V), 5, std=1.0, sparse=sparse), logistic),
        "tree": (tree, logistic),
    }


@pytest.mark.parametrize("name", sources(True))
def test_sparse_gradients_are_the_dense_ones(name: str) -> None:
    query = torch.randn(2, 7, DIM, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([0, 3, 3, 8, 1, 0, 5])
    grads = []
    for sparse in (False, True):
        negatives, head = sources(sparse)[name]
        ((asking, candidates),) = negatives(query, None, ids, None, torch.Generator().manual_seed(2))
        losses, _ = head(asking, candidates)
        (grad,) = torch.autograd.grad(losses.sum(), negatives.vectors)
        assert grad.is_sparse == sparse
        grads.append(grad.to_dense() if sparse else grad)
    assert grads[0].any()
    torch.testing.assert_close(*grads)


def test_a_whole_table_has_no_sparse_gradient() -> None:
    with pytest.raises(InputError, match="need a sampler: without one all 9 classes"):
        Table(V, DIM, sparse=True)


# --- what does not fit


@pytest.mark.parametrize(
    ("negatives", "head"),
    [
        (Tree(COUNTS, DIM), InfoNCE()),
        (Tree(COUNTS, DIM), NCE(bias=LearnedBias(0.0))),
        (Tree(COUNTS, DIM), NCE(bias=1.0)),
        (Targets(), InfoNCE()),
        (Table(V, DIM), AdaptiveSoftmax(DIM, V, [3])),
        (InBatch(), InfoNCE()),
    ],
)
def test_no_output_layer(negatives: object, head: object) -> None:
    with pytest.raises(InputError, match="is no output layer"):
        model(negatives, head)


@pytest.mark.parametrize(
    "options", [{"length": 0}, {"batch": 0}, {"max_held_out_words": 0}, {"streams": 0}, {"seed": -1}]
)
def test_values_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(InputError):
        full(**options)


def test_gru_values_out_of_range() -> None:
    for options in ({"dim": 0}, {"hidden": 0}, {"layers": 0}, {"dropout": 1.0}):
        with pytest.raises(InputError, match="a GRU needs"):
            GRU(V, **options)


def test_gru_goes_on_from_its_state() -> None:
    encoder, ids = GRU(V, 4, 5, layers=2), torch.arange(8).view(2, 4) % V
    whole, _ = encoder(ids)
    first, state = encoder(ids[:, :3])
    rest, _ = encoder(ids[:, 3:], state)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), whole)
    assert whole.shape == (2, 4, encoder.num_features)
    assert bool((whole[..., -1] == 1).all())


@pytest.mark.parametrize("options", [{"first": 0.0}, {"growth": 1.0}, {"most": 0}, {"max_seconds": 0.0}])
def test_held_out_values_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="measures come after"):
        HeldOut(Corpus("c", torch.zeros(1), ("a",), torch.ones(1), 1, 1), **options)


def test_sparse_gradients_are_not_clipped_by_value(words: Command, text: Path, capsys: pytest.CaptureFixture) -> None:
    settings = lm(text, "trainer.gradient_clip_val=1", "+trainer.gradient_clip_algorithm=value", "hydra.run.dir=run")
    assert words(*settings) == 2
    assert "clipping by value needs dense gradients" in capsys.readouterr().err


# --- runs


@pytest.fixture
def text(workplace: Path) -> Path:
    """Sixty lines in which every word but the first is a function of the one before."""
    words = [f"w{i}" for i in range(12)]
    lines = [" ".join(words[(start + 5 * i) % 12] for i in range(20)) for start in range(60)]
    path = workplace / "text.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def lm(text: Path, *words: str) -> list[str]:
    few = ["model.length=4", "model.batch=8", "encoder.dim=8", "encoder.hidden=8", "trainer.log_every_n_steps=1"]
    data = ["data=corpus", f"data.path={text}", "data.min_count=1", "data.held_out=0.1", "callbacks.held_out.most=50"]
    return ["experiment=language_model", *data, *few, "logger=csv", "trainer.accelerator=cpu", *words]


def draws(head: str) -> list[str]:
    if head == "adaptive_softmax":
        return ["head.cutoffs=[5]"]
    return [] if head in ("full_softmax", "hierarchical_softmax") else ["negatives.draws=6"]


@pytest.mark.parametrize("head", APPROXIMATIONS)
def test_every_head_trains(words: Command, text: Path, head: str) -> None:
    settings = lm(text, f"output={head}", *draws(head), "trainer.limit_train_batches=2", "trainer.max_epochs=1")
    assert words(*settings, "callbacks.held_out.first=1e-6", "hydra.run.dir=run") == 0
    found = figures("run")
    assert 1 < found["perplexity"] < 100
    assert found["unigram_perplexity"] == pytest.approx(13, rel=0.1)
    assert ("log_z" in found) == (head in ("nce", "negative_sampling"))
    assert ("perplexity_with_log_q" in found) == (head == "negative_sampling")
    rows = read_rows(Path("run/metrics.jsonl"))
    told = [row for row in rows if "held_out/perplexity" in row]
    assert told
    assert told[0]["train/seconds"] > 0
    assert told[0]["train/words"] > 0


def test_perplexity_needs_held_out_text(words: Command, text: Path, capsys: Any) -> None:
    assert words(*lm(text, "data.held_out=0", "hydra.run.dir=run")) == 2
    assert "no text is held out for it: data.held_out=0.05" in capsys.readouterr().err
    assert not Path("run/metrics.jsonl").exists()  # before the first step
    few = ("data.held_out=0", "metric=loss", "trainer.max_epochs=1", "hydra.run.dir=loss")
    assert words(*lm(text, *few)) == 0
    assert "perplexity" not in figures("loss")


def test_it_learns_what_follows_what(words: Command, text: Path) -> None:
    assert words(*lm(text, "trainer.max_epochs=6", "optimizer.lr=0.3", "hydra.run.dir=run")) == 0
    found = figures("run")
    assert found["perplexity"] < 0.7 * found["unigram_perplexity"]


def test_it_ends_after_so_many_seconds(words: Command, text: Path) -> None:
    settings = lm(
        text,
        "trainer.max_epochs=1000000",
        "trainer.gradient_clip_val=1",
        "callbacks.held_out.max_seconds=0.2",
        "hydra.run.dir=run",
    )
    assert words(*settings) == 0
    assert 0.2 <= figures("run")["seconds"] < 2
    last = read_rows(Path("run/metrics.jsonl"))[-2:]  # the last step, and the final figures
    assert any("held_out/perplexity" in row for row in last)


def test_a_resumed_run_is_the_uninterrupted_one(words: Command, text: Path) -> None:
    settings = lm(text, "output=sampled_softmax", "negatives.draws=6")
    assert words(*settings, "trainer.max_epochs=3", "hydra.run.dir=whole") == 0
    assert words(*settings, "trainer.max_epochs=1", "hydra.run.dir=parts") == 0
    assert words("resume=parts", "trainer.max_epochs=3") == 0
    whole, parts = (
        torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in ("whole", "parts")
    )
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert figures("whole")["perplexity"] == figures("parts")["perplexity"]


def test_another_text_is_not_resumed(words: Command, text: Path, capsys: Any) -> None:
    assert words(*lm(text, "trainer.max_epochs=1", "data.max_words=11", "hydra.run.dir=run")) == 0
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["words"][0] == "<unk>"
    text.write_text(text.read_text() + "w11 w11 w11 w11 w11\n" * 40)
    assert words("resume=run", "trainer.max_epochs=2") == 2
    said = capsys.readouterr().err
    assert re.search(r"12 words and this text 12; word \d+ was '[^']+' and is now '[^']+'", said)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("optimizer=adamw",), "AdamW takes no sparse gradients: encoder.sparse=false negatives.sparse=false; or"),
        (("optimizer=sgd",), "SGD with weight decay 0.0001 takes no sparse gradients: encoder.sparse=false neg"),
        (("optimizer=adamw", "negatives.sparse=false"), "no sparse gradients: encoder.sparse=false; or optimizer"),
        (("trainer.devices=2", "trainer.strategy=fsdp2"), "trainer.strategy=fsdp2: models of text on several dev"),
    ],
)
def test_what_does_not_fit_is_refused(
    words: Command, text: Path, capsys: Any, settings: tuple[str, ...], message: str
) -> None:
    assert words(*lm(text, "output=sampled_softmax", *draws("sampled_softmax"), *settings, "hydra.run.dir=run")) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings", [("optimizer=sgd", "optimizer.weight_decay=0"), ("optimizer=adamw", "encoder.sparse=false")]
)
def test_other_optimisers_train(words: Command, text: Path, settings: tuple[str, ...]) -> None:
    assert (
        words(*lm(text, *settings, "trainer.limit_train_batches=2", "trainer.max_epochs=1", "hydra.run.dir=run")) == 0
    )


def test_the_clock_stands_still_while_held_out_text_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes a second, each measure a hundred."""
    now = [0.0]
    monkeypatch.setattr("contrast.training.callbacks.progress.perf_counter", lambda: now[0])
    monkeypatch.setattr("contrast.training.callbacks.held_out.perf_counter", lambda: now[0])
    logged: list[dict[str, float]] = []

    class Logger:
        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            logged.append({"step": step, **metrics})

    class Module:
        logged = False

        def held_out(self, ids: Tensor, max_words: int) -> dict[str, float]:
            now[0] += 100
            return {"perplexity": 7.0, "held_out_words": max_words}

    class Trainer:
        should_stop, global_step, accumulate_grad_batches, is_global_zero = False, 0, 1, True
        loggers, strategy = (Logger(),), SimpleNamespace(broadcast=lambda value: value)

    throughput = Throughput("words", lambda batch: 5)
    corpus = Corpus("c", torch.zeros(1), ("a",), torch.ones(1), 1, 1, held_out=torch.zeros(3))
    callback = HeldOut(corpus, first=2, growth=2, most=3, max_seconds=9)
    trainer = Trainer()
    trainer.callbacks = [throughput, callback]
    callback.on_train_start(trainer, Module())
    throughput.on_train_epoch_start(trainer, Module())
    while not trainer.should_stop:
        trainer.global_step += 1
        now[0] += 1
        for each in trainer.callbacks:
            each.on_train_batch_end(trainer, Module(), {"loss": torch.ones(())}, None, 0)
    assert [row["train/seconds"] for row in logged] == [2, 4, 8, 9]
    assert [row["train/words"] for row in logged] == [10, 20, 40, 45]
    assert [row["step"] for row in logged] == [1, 3, 7, 8]
    assert logged[0]["held_out/perplexity"] == 7


def test_the_example_of_the_page_runs() -> None:
    page = Path(contrast.__file__).parents[1] / "docs" / "softmax-approximations.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    there: dict[str, Any] = {}
    exec(code, there)
    assert there["losses"].shape == (32,)
    assert there["table"].vectors.grad.is_sparse
