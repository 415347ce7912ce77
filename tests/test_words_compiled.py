"""The compiled loop over centre words: against naive loops in float64, and against the closed form at a small rate."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Disk
from torch import Tensor

from contrast.encoders import SubwordTable, WordTable
from contrast.errors import InputError
from contrast.heads import NCE, Cosine, Estimated, InfoNCE, Learnable, LearnedBias
from contrast.heads.head import Head
from contrast.negatives import Table, Tree
from contrast.samplers import Poisson, Unigram
from contrast.words import WordVectors, closed_form
from contrast.words.blocks import Passages, cut
from contrast.words.compiled import Loop, why_not
from contrast.words.descent import Descent
from contrast.words.model import Task

V, D, W = 12, 5, 3
COUNTS = torch.tensor([90, 40, 30, 20, 9, 8, 7, 6, 5, 4, 3, 2])
WORDS = ["ab", "abc", "abcd", "bcde", "cab", "dab", "ebb", "fab", "abab", "baba", "cabc", "deb"]
HEADS: dict[str, Callable[[], Head]] = {
    "negative sampling": lambda: NCE(1.0, cosine=False, correction=False, num_noise=3),
    "nce": lambda: NCE(0.8, cosine=False, bias=0.3, num_noise=3),
    "nce of all draws": lambda: NCE(1.2, cosine=False),
    "sampled softmax": lambda: InfoNCE(0.7, cosine=False),
    "tree": lambda: NCE(1.3, cosine=False),
}


@pytest.fixture
def numba() -> Any:
    return pytest.importorskip("numba")


def table(**options: Any) -> Table:
    return Table(V, D, sampler=Unigram(COUNTS), **({"draws": 6, "std": 0.5} | options))


def model(name: str = "negative sampling", method: str = "skipgram", subwords: str = "", **options: Any) -> Any:
    torch.manual_seed(3)
    hashes = 2 if subwords == "floret" else 0
    encoder = SubwordTable(V, WORDS, D, minn=2, maxn=3, buckets=50, hashes=hashes) if subwords else WordTable(V, D)
    negatives = Tree(COUNTS, D) if name == "tree" else table()
    sizes = {"window": W, "subsample": 0, "block": 4, "blocks": 2}
    made = WordVectors(encoder, negatives, HEADS[name](), COUNTS, method=method, **(sizes | options)).double()  # type: ignore[arg-type]
    torch.nn.init.normal_(made.encoder.weight, std=0.7)
    torch.nn.init.normal_(made.negatives.vectors, std=0.5)
    return made


def passages(made: WordVectors) -> Passages:
    ids = torch.randint(V, (61,), generator=torch.Generator().manual_seed(0))
    ids[[0, 7, 8, 19]] = -1
    return cut(ids, made.keep, made.window, made.block * made.blocks, torch.Generator().manual_seed(5))


def noise(made: WordVectors, text: Passages) -> list[Tensor | None]:
    """Of each passage."""
    drawn = made.negatives.draw(text.passages * made.blocks, torch.Generator().manual_seed(6))
    return [None] * text.passages if drawn is None else list(drawn.split(made.blocks))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def naive(made: WordVectors, text: Passages, lr: float) -> tuple[Tensor, Tensor, float, int]:
    """In plain loops: both tables after a step for each centre word, the sum of the losses, the number of pairs."""
    inputs, outputs = made.encoder.weight.detach().clone(), made.negatives.vectors.detach().clone()
    drawn, total, pairs = noise(made, text), 0.0, 0
    head, temperature = made.head, float(made.head.temperature())
    for i in range(2 * W, 2 * W + text.passages * text.size):
        near = [t for t in range(i - int(text.reach[i]), i + int(text.reach[i]) + 1) if t != i]
        context = [int(text.ids[t]) for t in near if text.line[t] == text.line[i]]
        if not context:
            continue
        centre = [int(text.ids[i])]
        read, targets = (context, centre) if made.method == "cbow" else (centre, context)
        query = torch.stack([inputs[word] for word in read]).mean(dim=0)
        pairs += len(targets)
        number, place = divmod(i - 2 * W, text.size)
        columns: list[tuple[int, float]] = []  # row, slope of the loss of all pairs in the score
        noise_of = drawn[number]
        if noise_of is None:
            assert isinstance(made.negatives, Tree)
            slopes: dict[int, float] = {}  # words share nodes
            for word in targets:
                for node, sign in zip(made.negatives.path[word], made.negatives.sign[word], strict=True):
                    if node >= 0:
                        score = float(outputs[node] @ query) / temperature
                        total -= math.log(sigmoid(float(sign) * score))
                        slopes[int(node)] = slopes.get(int(node), 0.0) + sigmoid(score) - float(sign > 0)
            columns = list(slopes.items())
        else:
            assert isinstance(made.negatives, Table)
            rows = noise_of[place // made.block].tolist()
            log_q = made.negatives.sampler.log_prob(torch.arange(V)).double() + math.log(len(rows))  # type: ignore[union-attr]
            score = (outputs @ query) / temperature
            if isinstance(head, InfoNCE):
                score = score - log_q
                z = sum(math.exp(score[row]) for row in rows)
                rest = [z / (math.exp(score[word]) + z) for word in targets]
                total -= sum(math.log(1 - share) for share in rest)
                columns = [(word, -share) for word, share in zip(targets, rest, strict=True)]
                columns += [(row, sum(rest) * math.exp(score[row]) / z) for row in rows]
            else:
                assert isinstance(head, NCE)
                weight = 1.0 if head.num_noise is None else head.num_noise / len(rows)
                # log_q is that of k draws: log(k q)
                score = score + float(head.bias()) - ((log_q + math.log(weight)) if head.correction else 0)
                columns = [(word, sigmoid(score[word]) - 1) for word in targets]
                columns += [(row, len(targets) * weight * sigmoid(score[row])) for row in rows]
                total -= sum(math.log(sigmoid(score[word])) for word in targets)
                total -= sum(len(targets) * weight * math.log(sigmoid(-score[row])) for row in rows)
        gradient = torch.zeros_like(query)
        for row, slope in columns:
            gradient += slope / temperature * outputs[row]
            outputs[row] -= lr * slope / temperature * query
        for word in read:
            inputs[word] -= lr * gradient / len(read)
    return inputs, outputs, total, pairs


@pytest.mark.parametrize("method", ["skipgram", "cbow"])
@pytest.mark.parametrize("name", HEADS)
def test_steps_are_those_of_naive_loops(numba: Any, name: str, method: str) -> None:
    made = model(name, method)
    text = passages(made)
    inputs, outputs, total, pairs = naive(made, text, 0.1)
    loop = Loop(made.encoder, made.negatives, made.head, method, W)
    losses = [loop.step(text, n, made.head, each, 0.1, True) for n, each in enumerate(noise(made, text))]
    torch.testing.assert_close(made.encoder.weight.detach(), inputs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(made.negatives.vectors.detach(), outputs, rtol=1e-9, atol=1e-9)
    assert sum(int(each[1]) for each in losses if each is not None) == pairs > 40
    assert sum(float(each[0]) for each in losses if each is not None) == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("subwords", ["", "fasttext", "floret"])
@pytest.mark.parametrize("method", ["skipgram", "cbow"])
@pytest.mark.parametrize("name", HEADS)
def test_at_a_small_rate_it_is_the_closed_form(numba: Any, name: str, method: str, subwords: str) -> None:
    made, lr = model(name, method, subwords), 1e-7
    text, before = passages(made), {key: value.clone() for key, value in made.state_dict().items()}
    loop = Loop(made.encoder, made.negatives, made.head, method, W)
    loads, changes, losses = torch.zeros(len(made.encoder.weight)).double(), [], []
    for compiled in (True, False):
        made.load_state_dict(before)
        total = 0.0
        for n, drawn in enumerate(noise(made, text)):
            parts = made.encoder, made.negatives, made.head
            if compiled:
                loss = loop.step(text, n, made.head, drawn, lr, True)
            else:
                loss = closed_form.step(*parts, text.passage(n), method, drawn, Descent(lr, None, loads), True)
            assert loss is not None
            total += float(loss[0])
        tables = made.encoder.weight, made.negatives.vectors
        names = "encoder.weight", "negatives.vectors"
        changes.append([(new.detach() - before[old]) / lr for new, old in zip(tables, names, strict=True)])
        losses.append(total)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for one, other in zip(*changes, strict=True):
        assert other.abs().max() > 1
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_tables_of_float32_stay_float32(numba: Any) -> None:
    made = model("nce").float()
    text = passages(made)
    exact = naive(made, text, 0.1)[0]
    loop = Loop(made.encoder, made.negatives, made.head, "skipgram", W)
    for n, drawn in enumerate(noise(made, text)):
        loop.step(text, n, made.head, drawn, 0.1)
    assert made.encoder.weight.dtype == torch.float32
    torch.testing.assert_close(made.encoder.weight.detach(), exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("lr", "least", "most"), [(1e-6, 0.999, 1.0), (4.0, 1 / 3, 0.95)])
@pytest.mark.parametrize("name", ["tree", "negative sampling"])
def test_workers_add_a_share_of_what_their_copies_of_common_rows_learn(
    numba: Any, name: str, lr: float, least: float, most: float
) -> None:
    results, start = [], model(name)
    text, stop = passages(start), len(start.negatives.vectors) - 1  # the first and the last row have no copies
    for workers in (1, 3):
        made = model(name)
        loop = Loop(made.encoder, made.negatives, made.head, "skipgram", W, workers)
        loop.copied = loop.copied._replace(first=1, stop=stop if workers > 1 else 1)
        loop.step(text, 0, made.head, noise(made, text)[0], lr)
        results.append((made.encoder.weight.detach(), made.negatives.vectors.detach() - start.negatives.vectors))
    (words, alone), (words_of_three, shared) = results
    torch.testing.assert_close(words, words_of_three, rtol=1e-12, atol=1e-12)  # trained with the copies
    changed = alone.abs().sum(dim=1) > 0
    assert changed.sum() > 5
    for row in (0, stop):
        torch.testing.assert_close(shared[row], alone[row], rtol=1e-9, atol=1e-12)
        changed[row] = False
    share = (shared / alone)[changed]
    torch.testing.assert_close(share, share[:, :1].expand_as(share), rtol=1e-4, atol=1e-4)  # one for each row
    assert share.min() >= least - 1e-4
    assert share.max() <= most + 1e-4


def test_a_scheduled_temperature_is_read_in_every_update(numba: Any) -> None:
    made = model()
    text, start = passages(made), made.encoder.weight.detach().clone()
    loop, results = Loop(made.encoder, made.negatives, made.head, "skipgram", W), []
    head = NCE(Cosine(0.5, 2.0), cosine=False, correction=False, num_noise=3)
    head.plan(10)
    for step in range(2):
        other = NCE(float(head.temperature()), cosine=False, correction=False, num_noise=3)
        changes = []
        for each in (head, other):
            made.encoder.weight.data.copy_(start)
            torch.nn.init.constant_(made.negatives.vectors, 0.2)
            loop.step(text, 0, each, noise(made, text)[0], 0.1)
            changes.append(made.encoder.weight.detach() - start)
        torch.testing.assert_close(*changes, rtol=1e-6, atol=1e-9)
        results.append(changes[0])
        head.advance()
        assert step or not torch.equal(head.temperature(), other.temperature())
    assert not torch.allclose(*results)


@pytest.mark.parametrize(
    ("head", "negatives", "reason"),
    [
        (NCE(Learnable(1.0), cosine=False), table, "NCE has .* a learned or estimated part"),
        (NCE(1.0, cosine=False, bias=LearnedBias(0.0)), table, "NCE has .* a learned or estimated part"),
        (NCE(1.0, cosine=False, bias=Estimated(0.5)), table, "NCE has .* a learned or estimated part"),
        (InfoNCE(1.0, cosine=True), table, "InfoNCE has cosines"),
        (InfoNCE(1.0, cosine=False, decoupled=True), table, "InfoNCE has cosines"),
        (InfoNCE(1.0, cosine=False), lambda: Table(V, D), "neither a tree nor independent draws"),
        (
            NCE(1.0, cosine=False),
            lambda: Table(V, D, sampler=Poisson(Unigram(COUNTS), 4.0)),
            "neither a tree nor independent draws",
        ),
    ],
)
def test_what_it_does_not_do_is_said(numba: Any, head: Head, negatives: Callable[[], Table], reason: str) -> None:
    said = why_not(WordTable(V, D), negatives(), head)
    assert said is not None
    assert re.search(reason, said)


def test_without_numba_the_way_to_get_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    made = model()
    assert "pip install 'contrast-learning[words]'" in str(why_not(made.encoder, made.negatives, made.head))
    assert made.compiled_loop() is None
    made.compiled = True
    with pytest.raises(InputError, match=r"model.compiled=true: .*numba"):
        made.compiled_loop()


def test_parts_that_do_not_fit_are_refused(numba: Any) -> None:
    made = model()
    for encoder, negatives in (
        (made.encoder, Table(V - 1, D, sampler=Unigram(COUNTS[:-1])).double()),
        (made.encoder, Table(V, D - 1, sampler=Unigram(COUNTS)).double()),
        (made.encoder, table()),
    ):
        with pytest.raises(InputError, match=r"12 words of 5 dimensions do not fit|of one type"):
            Loop(encoder, negatives, made.head, "skipgram", W)
    tree = model("tree")
    tree.negatives.path[0, 0] = V  # as a damaged checkpoint may have it
    with pytest.raises(InputError, match=r"0\.\.10, .*12"):
        Loop(tree.encoder, tree.negatives, tree.head, "skipgram", W)
    with pytest.raises(InputError, match="counts of 11 words do not fit 12 vectors"):
        WordVectors(WordTable(V, D), table(), made.head, COUNTS[:-1])


def test_draws_beyond_the_table_end_the_training(numba: Any) -> None:
    made = model()
    made.negatives.sampler.alias[:] = 10**6
    made.negatives.sampler.accept[:] = 0
    made.start_workers(1)
    assert made.loop is not None
    with pytest.raises(InputError, match=r"0\.\.11, .*1000000"):
        made.work(0, Task(torch.arange(V).int().numpy(), 1, 1))
    made.teardown("fit")


@pytest.mark.parametrize("scores", [[200.0, 0.0, 0.0, -1.0], [0.0, -300.0, 0.0, 0.0], [-500.0, -500.0, 3.0, 300.0]])
def test_a_softmax_of_extreme_scores_is_finite(numba: Any, scores: list[float]) -> None:
    from contrast.words.kernel import softmax

    exact = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    log_z = exact[2:].logsumexp(dim=0)  # the first two are targets
    losses = torch.logaddexp(exact[:2], log_z) - exact[:2]
    losses.sum().backward()
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        slopes = torch.tensor(scores, dtype=dtype).numpy()
        loss = softmax(slopes, 2, 4, True)
        assert loss == pytest.approx(float(losses.sum()), rel=tolerance)
        torch.testing.assert_close(torch.from_numpy(slopes).double(), exact.grad, rtol=tolerance, atol=tolerance)


def test_a_class_that_is_never_drawn_does_no_harm(numba: Any) -> None:
    made = model("sampled softmax")
    made.negatives = Table(V, D, sampler=Unigram(torch.cat([COUNTS[:-1], torch.zeros(1)])), draws=6, std=0.5).double()
    loop, text = Loop(made.encoder, made.negatives, made.head, "skipgram", W), passages(made)
    for n, drawn in enumerate(noise(made, text)):
        loss = loop.step(text, n, made.head, drawn, 0.01, True)
        assert loss is not None
        assert loss[0].isfinite()
    assert made.encoder.weight.isfinite().all()


def test_a_block_of_an_older_run_is_that_of_its_method(numba: Any) -> None:
    assert (model(block=None).block, model(block=None, method="cbow").block) == (32, 128)


def test_it_can_be_switched_off(numba: Any) -> None:
    assert model().compiled_loop() is not None
    assert model(compiled=False).compiled_loop() is None


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_train_the_same_tables(numba: Any, workers: int) -> None:
    made = model(workers=workers, lr=0.05, lr_end=0.05).float()
    pattern = torch.arange(V).repeat(200)  # each word predicts the next ones
    made.start_workers(30)
    assert made.loop is not None
    losses = []
    for number in range(1, 31):
        texts = torch.tensor_split(pattern, workers)
        assert made.pool is not None
        made.pool.run([Task(each.int().numpy(), number, 30) for each in texts])
        losses.append(made.first_loss[0] / made.first_loss[1])
    made.teardown("fit")
    assert losses[-1] < losses[0] - 0.3
    assert made.loop is None


SCRIPT = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
from test_words_compiled import model, passages
from contrast.words.compiled import Loop

made = model("negative sampling")
loop = Loop(made.encoder, made.negatives, made.head, made.method, made.window)
text = passages(made)
drawn = made.negatives.draw(2, torch.Generator().manual_seed(1))
loop.step(text, 0, made.head, drawn, 0.1)
print(sum(loop.train.stats.cache_hits.values()), sum(loop.train.stats.cache_misses.values()))
print(made.encoder.weight.tolist())
"""


def in_a_process(cache: Path) -> tuple[str, str]:
    """Hits and misses of the cache of compiled loops in the folder, and what a process has trained."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    words = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    counts, trained = done.stdout.splitlines()
    return counts, trained


@pytest.mark.slow
def test_a_later_process_compiles_nothing(numba: Any, tmp_path: Path) -> None:
    first, later = in_a_process(tmp_path / "cache"), in_a_process(tmp_path / "cache")
    assert (first[0], later[0]) == ("0 1", "1 0")
    assert first[1] == later[1]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_a_damaged_file_of_numba(numba: Any, tmp_path: Path, suffix: str) -> None:
    first = in_a_process(tmp_path)
    (file,) = tmp_path.rglob(f"*.{suffix}")
    file.write_bytes(b"")
    assert in_a_process(tmp_path)[1] == first[1]


@pytest.mark.slow
def test_a_full_disk_keeps_no_compiled_loop(numba: Any, tmp_path: Path, disk: Disk) -> None:
    place = disk("size=8k")
    first, later = in_a_process(place), in_a_process(place)
    assert (first[0], later[0]) == ("0 1", "0 1")
    assert first[1] == later[1]
