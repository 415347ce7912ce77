"""Tables in parts on two gloo ranks: a step against naive loops on whole tables, and a killed run that goes on."""

import importlib.util
import math
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import Command
from test_distributed import free_port, join, leave
from test_pretrain_text import SMALL, together, write_corpus
from test_resume import TRUST, differences
from test_words import D, L, V, generator, model, naive_step, passages, text, tree, whole
from torch import Tensor

from contrast.cli import commands
from contrast.data.text.corpus import corpus
from contrast.data.text.vectors import load_vectors
from contrast.errors import InputError
from contrast.heads import NCE, Estimated, InfoNCE, LearnedBias
from contrast.run.metrics import read_rows
from contrast.training.data import SpanData
from contrast.words import WordVectors, closed_form, sharded, spans
from contrast.words.blocks import Passage, cut, keep_probability
from contrast.words.descent import Descent
from contrast.words.model import Task

RATE, MOST = 0.1, 6.0
HAS_NUMBA = importlib.util.find_spec("numba") is not None
NUMBA = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
COMPILED = ["skip-gram", "cbow", "tree", "sampled softmax"]
SOURCES: dict[str, Callable[[], WordVectors]] = {
    "skip-gram": model,
    "cbow": lambda: model(method="cbow"),
    "tree": lambda: model(NCE(1.0, cosine=False), source=tree),
    "sampled softmax": lambda: model(InfoNCE(1.0, cosine=False)),
    "learned bias": lambda: model(NCE(1.0, cosine=False, bias=LearnedBias(), num_noise=3)),
}


CHUNKS = [text(90, 1).int().numpy(), text(33, 2).int().numpy()]  # of which one has more passages


def span(made: WordVectors, rank: int) -> tuple[Passage, Tensor | None]:
    """A passage of each rank's own text, and its noise."""
    return passages(made, text(seed=rank)).passage(1), made.negatives.draw(made.blocks, generator(20 + rank))


def step(made: WordVectors, rank: int, descent: Descent) -> None:
    closed_form.step(made.encoder, made.negatives, made.head, *arranged(made, rank), descent)


def arranged(made: WordVectors, rank: int) -> tuple[Passage, str, Tensor | None]:
    part, drawn = span(made, rank)
    return part, made.method, drawn


def ranked(rank: int, port: int, folder: str) -> None:
    join(rank, 2, port)
    for name, make in SOURCES.items():
        for most in (MOST, None):
            made = make()
            sizes = [len(table) for table in made.tables().values()]
            for table in made.tables().values():
                table.data = sharded.part(table.data)
            descent = sharded.ShardedDescent(RATE, most, torch.zeros(V // 2, dtype=torch.float64))
            step(made, rank, descent)
            tables = [sharded.whole(t.data, n) for t, n in zip(made.tables().values(), sizes, strict=True)]
            if rank == 0:
                tables += [each.data for each in made.head.parameters()]
                torch.save((tables, descent.sent), Path(folder) / f"{name} {most}.pt")
        made = make()
        made.heads, made.rows = [made.head], {key: len(table) for key, table in made.tables().items()}
        for table in made.tables().values():
            table.data = sharded.part(table.data)
        made.work(0, Task(CHUNKS[rank], 1, 10))
        tables = list(made.whole_tables().values())
        if rank == 0:
            torch.save((tables, made.sent), Path(folder) / f"{name} chunk.pt")
    if HAS_NUMBA:
        for name in COMPILED:
            made = SOURCES[name]()
            made.loop, made.batch_number = made.compiled_loop(), 1
            made.rows = {key: len(table) for key, table in made.tables().items()}
            for table in made.tables().values():
                table.data = sharded.part(table.data)
            made.start_workers(10)
            assert made.spans is not None
            (span,) = made.spans.fetch([made.prepared(0, CHUNKS[rank])[:2]], made.head, made.lr)
            made.work(0, Task(CHUNKS[rank], 1, 10, span))
            sent, tables = made.spans.send(), list(made.whole_tables().values())
            if rank == 0:
                torch.save((tables, sent), Path(folder) / f"{name} span.pt")
    leave()


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, float | str | None], Any]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(ranked, (free_port(), str(folder)), nprocs=2, start_method="fork")
    return lambda name, most: torch.load(folder / f"{name} {most}.pt", weights_only=True)


def naive_loads(made: WordVectors, part: Passage, noise: list[list[int]]) -> tuple[Tensor, Tensor]:
    """The loads of the rows of both tables: pairs times the mean of the squares of what a pair compares them with."""
    inputs, outputs = (table.detach().square().sum(dim=1) for table in made.tables().values())
    of_inputs, of_outputs = torch.zeros(V, dtype=torch.float64), torch.zeros(V, dtype=torch.float64)
    with_queries, with_outputs, pairs = 0.0, 0.0, 0
    share = made.head.num_noise / made.negatives.draws
    for i, j in zip(*map(Tensor.tolist, part.pairs()), strict=True):
        query, target = int(part.centre[i]), int(part.around[j])
        pairs += 1
        of_inputs[query] += 1
        of_outputs[target] += 1
        with_queries += float(inputs[query])
        with_outputs += float(outputs[target])
        for word in noise[i // L]:
            of_outputs[word] += share
            with_outputs += share * float(outputs[word])
    return of_inputs * with_outputs / pairs, of_outputs * with_queries / pairs


def test_two_ranks_take_the_step_of_naive_loops_over_both_spans(exchanged: Any) -> None:
    """The limit is on the loads of both."""
    made = model()
    before = [table.detach().clone() for table in made.tables().values()]
    slopes, loads = [torch.zeros(V, D, dtype=torch.float64) for _ in before], [torch.zeros(V) for _ in before]
    for rank in range(2):
        part, drawn = span(made, rank)
        assert drawn is not None
        shares = [[(word, 1 / len(row)) for word in row] for row in drawn.tolist()]
        after = naive_step(made, part, shares, 1.0)
        for n, load in enumerate(naive_loads(made, part, drawn.tolist())):
            slopes[n] = slopes[n] + before[n] - after[n]
            loads[n] = loads[n] + load
    limited = [load > MOST for load in loads]
    assert all(0 < int(each.sum()) < V for each in limited)
    tables, sent = exchanged("skip-gram", MOST)
    assert sent > 0
    for table, old, slope, load in zip(tables, before, slopes, loads, strict=True):
        rate = RATE * MOST / load.clamp(min=MOST)
        torch.testing.assert_close(table, old - rate[:, None] * slope, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("name", SOURCES)
def test_without_a_limit_the_changes_of_both_spans_are_added(exchanged: Any, name: str) -> None:
    made = SOURCES[name]()
    parameters = [*made.tables().values(), *made.head.parameters()]
    before = [each.detach().clone() for each in parameters]
    total = [each.clone() for each in before]
    for rank in range(2):
        for each, old in zip(parameters, before, strict=True):
            each.data = old.clone()
        step(made, rank, Descent(RATE, None, torch.zeros(V, dtype=torch.float64)))
        for n, each in enumerate(parameters):
            total[n] += each.detach() - before[n]
    for table, expected, old in zip(exchanged(name, None)[0], total, before, strict=True):
        torch.testing.assert_close(table, expected, rtol=1e-9, atol=1e-12)
        assert not torch.equal(table, old)


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "learned bias"])
def test_a_rank_with_fewer_passages_adds_nothing_in_the_others(exchanged: Any, name: str) -> None:
    made = SOURCES[name]()
    made.batch_number = 1
    ids = [torch.from_numpy(chunk).long() for chunk in CHUNKS]
    size = made.block * made.blocks
    texts = [cut(ids[rank], made.keep, made.window, size, made.generator(rank, 0)) for rank in range(2)]
    most, least = (pick(each.passages for each in texts) for pick in (max, min))
    assert least < most
    noise = [made.negatives.draw(most * made.blocks, made.generator(rank, 1)) for rank in range(2)]
    tables = list(made.tables().values())
    for n in range(most):
        before = [table.detach().clone() for table in tables]
        change = [torch.zeros_like(each) for each in before]
        descent = Descent(made.learning_rate(n / most / 10), None, torch.zeros(V))
        for each, drawn in zip(texts, noise, strict=True):
            if n < each.passages:
                drawn = None if drawn is None else drawn[n * made.blocks : (n + 1) * made.blocks]
                closed_form.step(made.encoder, made.negatives, made.head, each.passage(n), made.method, drawn, descent)
            for k, (table, old) in enumerate(zip(tables, before, strict=True)):
                change[k] += table.detach() - old
                table.data = old.clone()
        for table, added in zip(tables, change, strict=True):
            table.data += added
    found, sent = exchanged(name, "chunk")
    assert sent > 0
    for table, expected in zip(found, tables, strict=True):
        torch.testing.assert_close(table, expected.detach(), rtol=1e-9, atol=1e-12)


def naive_steps(made: WordVectors, rank: int) -> tuple[list[Tensor], list[Tensor]]:
    """What a rank changes on its own, and the steps of the rows of both tables."""
    made.start_workers(10)
    made.batch_number = 1
    assert made.loop is not None
    before = [table.detach().clone() for table in made.tables().values()]
    part, noise, _ = made.prepared(rank, CHUNKS[rank])
    loss = made.head.pair_loss(0 if noise is None else noise.shape[1])
    assert loss is not None
    lists = made.loop.output_rows
    targets, in_contexts, number = [0.0] * V, [0.0] * V, 0.0
    for word, others in zip(part.ids.tolist(), part.number.tolist(), strict=True):
        in_contexts[word] += others
        of_target = float(others > 0) if made.method == "cbow" else others
        targets[word] += of_target
        number += of_target
    of_rows = [0.0] * len(before[1])
    for word in range(V):
        for row in lists.row[lists.start[word] : lists.start[word + 1]]:
            of_rows[row] += targets[word]
    for block in [] if noise is None else noise.tolist():
        for row in block:
            of_rows[row] += loss.noise_weight * number / len(noise)
    parts = number / sum(in_contexts)  # of a word in a query: 1 of one in skip-gram, 1 / C of each of C in CBOW
    squares = [[float(row.square().sum()) for row in table] for table in before]
    of_pair = sum(n * square for n, square in zip(of_rows, squares[1], strict=True)) / number
    of_query = sum(n * square for n, square in zip(in_contexts, squares[0], strict=True)) / sum(in_contexts)
    rate = made.lr * loss.scale**2 * spans.CURVATURE
    steps = [rate * n * parts**2 * of_pair for n in in_contexts], [rate * n * of_query for n in of_rows]
    for n in range(part.passages):
        drawn = None if noise is None else noise[n * made.blocks : (n + 1) * made.blocks]
        lr = made.learning_rate(n / part.passages / 10)
        made.loop.step(part, n, made.head, drawn, lr)
    changes = [table.detach() - old for table, old in zip(made.tables().values(), before, strict=True)]
    return changes, [torch.tensor(each, dtype=torch.float64) for each in steps]


@NUMBA
@pytest.mark.parametrize("name", COMPILED)
def test_two_ranks_merge_what_each_has_learned_in_the_compiled_loop(exchanged: Any, name: str) -> None:
    ours, theirs = (naive_steps(SOURCES[name](), rank) for rank in range(2))
    tables, sent = exchanged(name, "span")
    assert sent > 0
    before = [table.detach() for table in SOURCES[name]().tables().values()]
    for n, table in enumerate(before):
        expected = table.clone()
        for row in range(len(table)):
            steps = float(ours[1][n][row]), float(theirs[1][n][row])
            of_sum = sum(1 - math.exp(-each) for each in steps)
            share = (1 - math.exp(-sum(steps))) / of_sum if of_sum else 1.0
            expected[row] += share * (ours[0][n][row] + theirs[0][n][row])
        torch.testing.assert_close(tables[n], expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(expected, table)


def test_the_compiled_loop_runs_on_all_ranks_or_on_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "world_size", lambda: 3)
    for number in (0.0, 3.0, 2.0):
        monkeypatch.setattr(sharded, "sum_over_ranks", lambda _, number=number: torch.tensor(number))
        if number == 2:
            with pytest.raises(InputError, match="runs on 2 of 3 ranks"):
                sharded.check_same(True, torch.device("cpu"))
        else:
            sharded.check_same(number > 0, torch.device("cpu"))


def test_a_worker_is_sent_its_own_part_alone(tmp_path: Path) -> None:
    """torch pickles all of the memory that a tensor is a part of."""
    pytest.importorskip("numba")
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        made = model(workers=3)
        made.loop = made.compiled_loop()
        made.rows = {key: len(table) for key, table in made.tables().items()}
        made.spans = made.spans_of(made.loop)
        made.batch_number = 1
        parts = [made.prepared(worker, CHUNKS[0])[:2] for worker in range(3)]
        (one,), three = made.spans.fetch(parts[:1], made.head, 0.1), made.spans.fetch(parts, made.head, 0.1)
        assert len(three) == 3
        assert len(pickle.dumps(three[0][:2])) == len(pickle.dumps(one[:2]))
    finally:
        dist.destroy_process_group()


def test_changes_are_added_where_they_are_small_and_else_averaged() -> None:
    changes = torch.randn(5, D, dtype=torch.float64, generator=generator())
    progress = torch.tensor([1e-9, 3e-9, 40.0, 50.0, 7.0])
    found = spans.merged(changes, progress, torch.tensor([0, 0, 1, 1, 2]), 3)
    expected = torch.stack([changes[0] + changes[1], (changes[2] + changes[3]) / 2, changes[4]])
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_passages_without_pairs_follow_so_that_all_ranks_have_equally_many() -> None:
    made = model()
    few = passages(made)
    more = few.extended(few.passages + 2)
    assert more.passages == few.passages + 2
    for n in range(more.passages):
        part = more.passage(n)
        if n < few.passages:
            assert torch.equal(part.band.pairs, few.passage(n).band.pairs)
            assert torch.equal(part.around, few.passage(n).around)
        else:
            assert not part.band.pairs.any()
            assert len(part.centre) == made.block * made.blocks
    nothing = passages(made, torch.full((5,), -1))
    assert nothing.passages == 0
    assert not nothing.extended(3).passage(2).band.number.any()
    assert few.extended(1) is few


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: model(workers=2, compiled=False), "is one process: model.workers=1, not 2"),
        (lambda: model(InfoNCE(1.0, cosine=False), source=whole), "a full softmax would fetch the whole table"),
        (lambda: model(NCE(1.0, cosine=True, num_noise=3)), "gradients in closed form"),
        (lambda: model(NCE(1.0, cosine=False, bias=Estimated(), num_noise=3)), "no common estimate of Z"),
    ],
)
def test_what_trains_in_one_process_only(made: Callable[[], WordVectors], message: str) -> None:
    found = made()
    with pytest.raises(InputError, match=message):
        sharded.check_ranks(found.workers, found.compiled is None, found.encoder, found.negatives, found.head)


def rank_of_run(rank: int, port: int, settings: tuple[str, ...]) -> None:
    """What torchrun starts."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "run",
    }
    torch.set_num_threads(1)
    sys.argv = ["contrast-words", *settings]
    commands.words()


def on_two_ranks(*settings: str, run: str) -> None:
    two = ("trainer.devices=2", "trainer.strategy=ddp", "trainer.max_epochs=2", "checkpoints.every_n_steps=2")
    arguments = (free_port(), (*settings, *two, f"hydra.run.dir={run}"))
    mp.start_processes(rank_of_run, arguments, nprocs=2, start_method="fork")


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["false", pytest.param("true", marks=NUMBA)])
def test_a_killed_run_goes_on_bit_for_bit(words: Command, workplace: Path, compiled: str) -> None:
    """Its checkpoint holds whole tables, from which one process goes on as well; its vectors have learnt."""
    write_corpus(Path("corpus.txt"))
    kill = (
        f"model.compiled={compiled}",
        "+callbacks.interrupt._target_=test_resume.Interrupt",
        "+callbacks.interrupt.at=7",
    )
    with pytest.raises(mp.ProcessExitedException):
        on_two_ranks(*SMALL, *kill, run="cut")
    assert not Path("cut/metrics.json").exists()
    shutil.copytree("cut", "other")
    on_two_ranks("resume=cut", TRUST, "callbacks.interrupt.at=0", run="cut")
    on_two_ranks(*SMALL, f"model.compiled={compiled}", run="whole")
    (names, vectors), (_, again) = (load_vectors(f"{run}/vectors.safetensors") for run in ("whole", "cut"))
    assert torch.equal(vectors, again)
    whole, cut = (torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("whole", "cut"))
    assert list(differences(whole["state_dict"], cut["state_dict"])) == []
    assert torch.equal(whole["state_dict"]["encoder.weight"], vectors)
    same, other = together(vectors, names)
    assert same > other + 0.3
    assert all(row["train/bytes_per_word"] > 0 for row in read_rows(Path("whole/metrics.jsonl")) if "train/loss" in row)
    assert words("resume=other", TRUST, "callbacks.interrupt.at=0", "trainer.devices=1", "trainer.strategy=auto") == 0
    names, vectors = load_vectors("other/vectors.safetensors")
    same, other = together(vectors, names)
    assert same > other + 0.3


@pytest.mark.slow
@NUMBA
@pytest.mark.parametrize("output", ["negative_sampling", "hierarchical_softmax"])
def test_each_rank_has_workers_in_the_compiled_loop(workplace: Path, output: str) -> None:
    write_corpus(Path("corpus.txt"))
    on_two_ranks(*SMALL, "model.workers=2", "model.compiled=true", f"output={output}", run="run")
    names, vectors = load_vectors("run/vectors.safetensors")
    same, other = together(vectors, names)
    assert same > other + 0.3


@pytest.mark.slow
def test_the_words_of_the_files_of_all_ranks_are_counted_together(workplace: Path) -> None:
    lines = write_corpus(Path("corpus.txt")).read_text().splitlines(keepends=True)
    Path("text").mkdir()
    for n in range(3):  # the first rank has two files, the second one
        Path(f"text/{n}.txt").write_text("".join(lines[n::3]))
    on_two_ranks(*SMALL, "data.path=text", "data.over_ranks=true", "data.min_count=500", run="run")
    whole = corpus("corpus.txt", min_count=500)
    assert load_vectors("run/vectors.safetensors")[0] == whole.words
    state = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert state["SpanData"]["count"] == len(whole.ids)
    assert torch.equal(state["state_dict"]["keep"], keep_probability(whole.counts, 0))


def rank_with_a_text(rank: int, port: int, settings: tuple[str, ...]) -> None:
    rank_of_run(rank, port, (*settings, f"data.path=text{rank}"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((), "all ranks must train on the same text: rank 1 has"),
        (("data.over_ranks=true",), "same files: rank 1 has 3"),
    ],
)
def test_ranks_with_other_texts_end(workplace: Path, capfd: Any, settings: tuple[str, ...], message: str) -> None:
    for rank in range(2):
        Path(f"text{rank}").mkdir()
        for n in range(2 + rank):
            write_corpus(Path(f"text{rank}/{n}.txt"))
    words = (*SMALL, *settings, "trainer.devices=2", "trainer.strategy=ddp", "hydra.run.dir=run")
    with pytest.raises((mp.ProcessExitedException, mp.ProcessRaisedException)):
        mp.start_processes(rank_with_a_text, (free_port(), words), nprocs=2, start_method="fork")
    assert message in capfd.readouterr().err


@pytest.mark.slow
def test_a_complete_run_ends_at_once_on_all_ranks(workplace: Path) -> None:
    write_corpus(Path("corpus.txt"))
    on_two_ranks(*SMALL, run="run")
    before = Path("run/metrics.jsonl").read_bytes()
    on_two_ranks("resume=run", run="run")
    assert Path("run/metrics.jsonl").read_bytes() == before


def test_torchrun_with_another_number_of_processes(
    words: Command, workplace: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(Path("corpus.txt"))
    for name, value in {"TORCHELASTIC_RUN_ID": "run", "WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert words(*SMALL, "trainer.devices=2") == 2
    assert "torchrun has started 3: trainer.devices=3" in capsys.readouterr().err


@pytest.mark.parametrize("parts", [None, [10, 23, 17]])
def test_the_ranks_read_each_place_of_the_text_once(parts: list[int] | None) -> None:
    """One text cut in parts, or a text of each rank, which ends earlier than others; all have equally many spans."""
    ids = torch.arange(50, dtype=torch.int32)
    seen, numbers = [], set()
    for rank in range(3):
        own = ids if parts is None else ids.split(parts)[rank]
        data = SpanData(own, 12, seed=0, by_rank=True, parts=parts)
        assert data.count == 50
        spans = list(data.loader(cast(Any, SimpleNamespace(global_rank=rank, world_size=3))))
        assert max(len(span.ids) for span in spans) == 4
        numbers.add(len(spans))
        seen += torch.cat([span.ids for span in spans]).tolist()
    assert numbers == {5 if parts is None else 6}
    assert sorted(seen) == ids.tolist()
