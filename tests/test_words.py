"""Skip-gram and CBOW: blocks against word2vec's loops, steps written out against autograd and against naive sums."""

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from contrast.encoders import WordTable
from contrast.errors import InputError
from contrast.heads import NCE, Cosine, Estimated, InfoNCE, Learnable, LearnedBias
from contrast.negatives import Table, Tree
from contrast.samplers import Unigram
from contrast.words import WordVectors, by_autograd, closed_form
from contrast.words.blocks import Blocks, cut_blocks, keep_probability
from contrast.words.descent import Descent
from contrast.words.model import Task

V, D, W, L = 12, 5, 3, 4
COUNTS = torch.tensor([90, 40, 30, 20, 9, 8, 7, 6, 5, 4, 3, 2])


def text(places: int = 41, seed: int = 0) -> Tensor:
    ids = torch.randint(V, (places,), generator=torch.Generator().manual_seed(seed))
    ids[[0, 7, 8, 19]] = -1
    return ids


def model(head: Any = None, source: Callable[[], Any] | None = None, **options: Any) -> WordVectors:
    torch.manual_seed(3)
    negatives = Table(V, D, sampler=Unigram(COUNTS), draws=6, std=0.5) if source is None else source()
    if head is None:
        head = NCE(temperature=1.0, cosine=False, correction=False, num_noise=3)
    made = WordVectors(
        WordTable(V, D),
        negatives,
        head,
        COUNTS,
        window=W,
        subsample=0,
        block=L,
        blocks=2,
        **({"max_pairs_per_row": None} | options),
    ).double()
    torch.nn.init.normal_(made.encoder.weight, std=0.7)
    return made


def closed_step(made: WordVectors, text: Blocks, sampled: Tensor, counts: Tensor, lr: float = 0.1) -> None:
    noise = closed_form.noise_words(made.head, made.negatives, 0, generator())
    descent, noise = Descent(lr, made.max_pairs_per_row, counts), noise._replace(sampled=sampled)
    closed_form.step(made.method, made.encoder.weight, made.negatives.vectors, text, noise, descent)


def autograd_step(made: WordVectors, text: Blocks, random: torch.Generator, counts: Tensor, lr: float) -> None:
    descent = Descent(lr, made.max_pairs_per_row, counts)
    by_autograd.step(made.encoder, made.negatives, made.head, made.score(text, made.head, random), descent)


def losses(made: WordVectors, text: Blocks, random: torch.Generator) -> Tensor:
    return torch.cat([each.losses for each in made.score(text, made.head, random)])


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive_pairs(ids: Tensor, reach: dict[int, int]) -> list[tuple[int, int]]:
    """(place of the centre, place of the word around), as two loops."""
    found = []
    for i in range(len(ids)):
        for j in range(len(ids)):
            same_line = all(int(ids[m]) >= 0 for m in range(min(i, j), max(i, j) + 1))
            if i != j and same_line and abs(i - j) <= reach.get(i, 0):
                found.append((i, j))
    return found


def test_pairs_are_those_of_two_loops() -> None:
    ids = text()
    made = cut_blocks(ids, torch.ones(V), W, L, generator())
    places = (ids >= 0).nonzero().squeeze(1)
    reach = dict(zip(places.tolist(), made.reach.flatten().tolist(), strict=False))
    assert set(reach.values()) == {1, 2, 3}
    expected = naive_pairs(ids, reach)
    block, centre, around = made.pairs().nonzero(as_tuple=True)
    got = zip(made.centre[block, centre].tolist(), made.around[block, around].tolist(), strict=True)
    assert sorted(got) == sorted((int(ids[i]), int(ids[j])) for i, j in expected)
    rank = {int(place): n for n, place in enumerate(places)}  # a word's number among those of the text
    at = [(n * L + i, n * L + j - W) for n, i, j in zip(block.tolist(), centre.tolist(), around.tolist(), strict=True)]
    assert sorted(at) == sorted((rank[i], rank[j]) for i, j in expected)


def test_dropped_words_bring_their_neighbours_closer() -> None:
    keep = torch.ones(V)
    keep[1] = 0
    made = cut_blocks(torch.tensor([0, 1, 2, -1, 3]), keep, 1, 4, generator())
    assert made.centre.tolist() == [[0, 2, 3, 0]]
    block, centre, around = made.pairs().nonzero(as_tuple=True)
    got = zip(made.centre[block, centre].tolist(), made.around[block, around].tolist(), strict=True)
    assert sorted(got) == [(0, 2), (2, 0)]


@pytest.mark.parametrize("ids", [torch.empty(0, dtype=torch.long), torch.tensor([-1, -1])])
def test_a_span_without_words_has_no_blocks(ids: Tensor) -> None:
    made = cut_blocks(ids, torch.ones(V), W, L, generator())
    assert len(made) == 0
    assert made.pairs().shape == (0, L, L + 2 * W)


def test_keep_probability_is_that_of_word2vec() -> None:
    keep = keep_probability(COUNTS, 0.05)
    for count, told in zip(COUNTS.tolist(), keep.tolist(), strict=True):
        share = count / int(COUNTS.sum())
        assert told == pytest.approx(min(1.0, math.sqrt(0.05 / share) + 0.05 / share))
    assert keep_probability(COUNTS, 0).eq(1).all()
    with pytest.raises(InputError, match=r"got 1\.5"):
        keep_probability(COUNTS, 1.5)


def test_words_are_kept_as_often_as_that() -> None:
    ids = torch.zeros(20_000, dtype=torch.long)
    made = cut_blocks(ids, torch.full((V,), 0.3), W, L, generator())
    kept = (made.line >= 0).sum().item()
    assert abs(kept - 6000) < 4 * math.sqrt(20_000 * 0.3 * 0.7)


def naive_step(
    made: WordVectors, part: Any, noise: list[list[tuple[int, float]]], rate: float
) -> tuple[Tensor, Tensor]:
    """Tables after one step of gradient descent on the sum of the pairs' losses, pair by pair.

    noise  of each block, words and the share that each has of a pair's k draws
    """
    inputs = made.encoder.weight.detach().clone().requires_grad_()
    outputs = made.negatives.vectors.detach().clone().requires_grad_()
    head, log_q, total = made.head, made.negatives.sampler.log_q.double(), torch.zeros((), dtype=torch.float64)

    def loss(query: Tensor, answer: int, noise: list[tuple[int, float]]) -> Tensor:
        def score(word: int) -> Tensor:
            value = query @ outputs[word] + head.bias().double()
            return value - (log_q[word] + math.log(head.num_noise)) if head.correction else value

        found = torch.log1p(torch.exp(-score(answer)))
        for word, share in noise:
            found = found + head.num_noise * share * torch.log1p(torch.exp(score(word)))
        return found

    for n in range(len(part)):
        around, centre, pairs = part.around[n].tolist(), part.centre[n].tolist(), part.pairs()[n]
        for i in range(L):
            context = [j for j in range(L + 2 * W) if pairs[i, j]]
            if made.method == "skipgram":
                for j in context:
                    total = total + loss(inputs[centre[i]], around[j], noise[n])
            elif context:
                query = sum(inputs[around[j]] for j in context) / len(context)
                total = total + loss(query, centre[i], noise[n])
    of_inputs, of_outputs = torch.autograd.grad(total, (inputs, outputs))
    return (inputs - rate * of_inputs).detach(), (outputs - rate * of_outputs).detach()


@pytest.mark.parametrize("method", ["skipgram", "cbow"])
@pytest.mark.parametrize(("correction", "bias"), [(False, 0.0), (True, 0.0), (True, -1.5), (False, 0.5)])
def test_a_step_is_that_of_naive_sums_and_of_autograd(method: Any, correction: bool, bias: float) -> None:
    def fresh() -> WordVectors:
        head = NCE(temperature=1.0, cosine=False, bias=bias, correction=correction, num_noise=3)
        return model(head, method=method)

    out, by_hand = fresh(), fresh()
    assert out.has_closed_form
    part = cut_blocks(text(), out.keep, W, L, generator()).part(0, 3)
    drawn = out.negatives.sampler.draw((len(part), out.negatives.draws), generator(9))
    shares = [[(word, 1 / len(row)) for word in row] for row in drawn.tolist()]
    expected = naive_step(out, part, shares, 0.1)
    closed_step(out, part, drawn, torch.zeros(V))
    torch.testing.assert_close(out.encoder.weight.detach(), expected[0], rtol=2e-6, atol=2e-7)
    torch.testing.assert_close(out.negatives.vectors.detach(), expected[1], rtol=2e-6, atol=2e-7)
    autograd_step(by_hand, part, generator(9), torch.zeros(V), 0.1)
    torch.testing.assert_close(by_hand.encoder.weight, out.encoder.weight, rtol=2e-6, atol=2e-7)
    torch.testing.assert_close(by_hand.negatives.vectors, out.negatives.vectors, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("method", ["skipgram", "cbow"])
@pytest.mark.parametrize(
    ("head", "source"),
    [
        (lambda: InfoNCE(temperature=1.0, cosine=False), lambda: Table(V, D, std=0.5)),
        (lambda: InfoNCE(temperature=1.0, cosine=False), lambda: Table(V, D, Unigram(COUNTS), draws=6, std=0.5)),
        (lambda: NCE(temperature=1.0, cosine=False), lambda: Tree(COUNTS, D)),
        (
            lambda: NCE(temperature=0.5, cosine=True, num_noise=2),
            lambda: Table(V, D, Unigram(COUNTS), draws=6, std=0.5),
        ),
    ],
    ids=["full softmax", "sampled softmax", "hierarchical softmax", "cosine"],
)
def test_other_heads_lower_their_loss(method: Any, head: Any, source: Any) -> None:
    made = model(head(), source, method=method)
    assert not made.has_closed_form
    part = cut_blocks(text(), made.keep, W, L, generator()).part(0, 2)

    def loss() -> float:
        with torch.no_grad():
            return sum(float(losses(made, part.part(n, n + 1), generator(n)).sum()) for n in range(2))

    before = loss()
    for _ in range(20):
        autograd_step(made, part, generator(0), torch.zeros(V), 0.05)
    assert loss() < 0.9 * before


def test_sharing_noise_changes_the_draws_and_not_the_expected_loss() -> None:
    """Mean over many draws of the shared form = k E_q[softplus(s)] + softplus(-s of the word itself)."""
    made = model()
    part = cut_blocks(text(), made.keep, W, L, generator()).part(0, 1)
    draws = generator(1)
    with torch.no_grad():
        many = torch.stack([losses(made, part, draws) for _ in range(4000)])  # [runs, P]
        _, centre, around = part.pairs().nonzero(as_tuple=True)
        scores = made.encoder.weight[part.centre[0, centre]] @ made.negatives.vectors.T  # [P, V]
        q = made.negatives.sampler.log_q.double().exp()
        own = scores.gather(1, part.around[0, around][:, None]).squeeze(1)
        expected = torch.nn.functional.softplus(-own) + 3 * torch.nn.functional.softplus(scores) @ q
    error = many.std(dim=0) / math.sqrt(len(many))
    assert ((many.mean(dim=0) - expected).abs() < 5 * error).all()


@pytest.mark.parametrize("method", ["skipgram", "cbow"])
def test_sharing_noise_does_not_change_the_expected_gradient(method: Any) -> None:
    """The mean step over all V^2 outcomes of two shared draws is that of the expectation over a pair's own k draws."""
    made = model(source=lambda: Table(V, D, sampler=Unigram(COUNTS), draws=2, std=0.5), method=method)
    part = cut_blocks(text(), made.keep, W, L, generator()).part(1, 2)
    q = made.negatives.sampler.log_q.double().softmax(dim=0)  # sums to 1 in float64 too
    tables = made.encoder.weight, made.negatives.vectors
    start = [table.detach().clone() for table in tables]
    mean = [torch.zeros_like(table) for table in start]
    for first in range(V):
        for second in range(V):
            closed_step(made, part, torch.tensor([[first, second]]), torch.zeros(V, dtype=torch.float64))
            for table, before, total in zip(tables, start, mean, strict=True):
                total += q[first] * q[second] * table.detach()
                table.data.copy_(before)
    expected = naive_step(made, part, [list(enumerate(q.tolist()))], 0.1)
    for got, right, before in zip(mean, expected, start, strict=True):
        assert (right - before).abs().max() > 0.01
        torch.testing.assert_close(got, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["skipgram", "cbow"])
def test_a_row_takes_in_no_more_than_the_limit(method: Any) -> None:
    """Each table's step is that without a limit, scaled row by row by limit / the pairs that change it."""
    free, held = model(method=method), model(method=method, max_pairs_per_row=2.5)
    part = cut_blocks(text(), free.keep, W, L, generator()).part(0, 3)
    drawn = free.negatives.sampler.draw((3, 6), generator(9))
    start = free.encoder.weight.detach().clone(), free.negatives.vectors.detach().clone()
    counts = torch.zeros(V, dtype=torch.float64)
    closed_step(free, part, drawn, counts)
    closed_step(held, part, drawn, counts)
    assert not counts.any()
    asks, answers = torch.zeros(V), torch.zeros(V)
    for n in range(3):
        pairs = part.pairs()[n].float()
        number = pairs.sum(dim=1)  # of each centre
        if method == "skipgram":
            asks.index_add_(0, part.centre[n], number)
            answers.index_add_(0, part.around[n], pairs.sum(dim=0))
        else:
            asks.index_add_(0, part.around[n], (pairs / number.clamp(min=1)[:, None]).sum(dim=0))
            number = (number > 0).float()
            answers.index_add_(0, part.centre[n], number)
        answers.index_add_(0, drawn[n], (3 / 6 * number.sum()).expand(6))
    for pairs, before, whole, got in zip(
        (asks, answers),
        start,
        (free.encoder.weight, free.negatives.vectors),
        (held.encoder.weight, held.negatives.vectors),
        strict=True,
    ):
        assert (pairs > 2.5).any()
        scale = (2.5 / pairs.clamp(min=2.5)).double()[:, None]
        torch.testing.assert_close(got.detach(), before + scale * (whole.detach() - before), rtol=1e-5, atol=1e-7)


def test_a_step_changes_the_rows_of_its_words_and_draws_alone() -> None:
    made = model()
    part = cut_blocks(torch.tensor([0, 1, 2, 1]), made.keep, W, L, generator())
    tables = made.encoder.weight, made.negatives.vectors
    before = [table.detach().clone() for table in tables]
    closed_step(made, part, torch.tensor([[5, 6]]), torch.zeros(V))
    for table, old, rows in zip(tables, before, ({0, 1, 2}, {0, 1, 2, 5, 6}), strict=True):
        assert set((table != old).any(dim=1).nonzero().squeeze(1).tolist()) == rows


class Largest(TorchDispatchMode):
    """The most numbers that an operation gives back, of a sparse tensor those it holds; the tensors `given` aside."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.given = {each.untyped_storage().data_ptr() for each in given}
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else [out]:
            if isinstance(each, Tensor):
                values = each.coalesce().values() if each.is_sparse else each
                if values.untyped_storage().data_ptr() not in self.given:
                    self.numbers = max(self.numbers, values.numel())
        return out


@pytest.mark.parametrize("method", ["skipgram", "cbow"])
@pytest.mark.parametrize("noise", [3, None])
def test_the_limit_is_the_same_by_autograd(method: Any, noise: float | None) -> None:
    def fresh() -> WordVectors:
        head = NCE(temperature=1.0, cosine=False, correction=False, num_noise=noise)
        source = partial(Table, V, D, sampler=Unigram(COUNTS), draws=6, std=0.5, sparse=True)
        return model(head, source, method=method, max_pairs_per_row=1.5)

    out, by_hand = fresh(), fresh()
    part = cut_blocks(text(), out.keep, W, L, generator()).part(2, 3)
    drawn = out.negatives.sampler.draw((1, 6), generator(9))
    closed_step(out, part, drawn, torch.zeros(V, dtype=torch.float64))
    counts = torch.zeros(V, dtype=torch.float64)
    autograd_step(by_hand, part, generator(9), counts, 0.1)
    assert not counts.any()
    torch.testing.assert_close(by_hand.encoder.weight, out.encoder.weight)
    torch.testing.assert_close(by_hand.negatives.vectors, out.negatives.vectors)


@pytest.mark.parametrize("sparse", [True, False])
def test_a_node_of_the_tree_takes_in_no_more_than_the_limit(sparse: bool) -> None:
    """The padding of short paths counts for nothing."""
    held, free = (
        model(NCE(1.0, cosine=False), lambda: Tree(COUNTS, D, sparse=sparse), max_pairs_per_row=limit)
        for limit in (4.0, None)
    )
    part = cut_blocks(text(), free.keep, W, L, generator()).part(0, 3)
    for each in (held, free):
        torch.nn.init.normal_(each.negatives.vectors, std=0.5, generator=generator(2))
    start = free.negatives.vectors.detach().clone()
    for each in (held, free):
        autograd_step(each, part, generator(9), torch.zeros(V, dtype=torch.float64), 0.1)
    pairs = torch.zeros(V - 1)
    for n in range(3):
        _, _, place = part.part(n, n + 1).pairs().nonzero(as_tuple=True)
        for word in part.around[n][place].tolist():
            for node in free.negatives.path[word].tolist():
                pairs[node] += node >= 0
    assert (pairs > 4).any()
    assert ((pairs > 0) & (pairs < 4)).any()
    scale = (4 / pairs.clamp(min=4)).double()[:, None]
    expected = start + scale * (free.negatives.vectors.detach() - start)
    torch.testing.assert_close(held.negatives.vectors.detach(), expected)


def test_a_learned_bias_takes_in_no_more_than_the_limit() -> None:
    held, free = (
        model(NCE(1.0, cosine=False, bias=LearnedBias(0.5)), max_pairs_per_row=limit) for limit in (4.0, None)
    )
    part = cut_blocks(text(), free.keep, W, L, generator()).part(0, 3)
    for each in (held, free):
        autograd_step(each, part, generator(9), torch.zeros(V, dtype=torch.float64), 0.1)
    change, whole = (float(each.head.bias().detach()) - 0.5 for each in (held, free))
    assert change == pytest.approx(4 / int(part.pairs().sum()) * whole)


def test_vectors_that_are_not_finite_are_told() -> None:
    made = model()
    made.encoder.weight.data[3, 1] = math.nan
    with pytest.raises(InputError, match=r"1 of 12 vectors are not finite"):
        made.vectors()


@pytest.mark.parametrize("written_out", [True, False])
@pytest.mark.parametrize("method", ["skipgram", "cbow"])
def test_nothing_of_the_tables_size_is_made(method: Any, written_out: bool) -> None:
    """Not even a number for each word: an update takes the same memory whatever the vocabulary is."""
    words = 1000
    head = NCE(temperature=1.0, cosine=False, correction=False, num_noise=3)
    counts = torch.ones(words)
    negatives = Table(words, D, sampler=Unigram(counts), draws=6, sparse=True)
    made = WordVectors(WordTable(words, D), negatives, head, counts, method=method, window=W, block=L, blocks=2)
    counts = torch.zeros(words)
    part = cut_blocks(text(), made.keep[:V], W, L, generator()).part(0, 2)
    drawn = negatives.sampler.draw((2, 6), generator(9))
    with Largest(made.encoder.weight, negatives.vectors, counts) as largest:
        if written_out:
            closed_step(made, part, drawn, counts)
        else:
            autograd_step(made, part, generator(9), counts, 0.1)
    block = 2 * L * (L + 2 * W) * D  # the pairs' vectors, which autograd holds one by one
    assert 2 * 6 * D <= largest.numbers <= block < words


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "glove"}, "'glove'"),
        ({"workers": 0}, "workers 0"),
        ({"lr": 0.1, "lr_end": 0.2}, r"0\.1 and 0\.2"),
        ({"seed": -1}, "-1"),
        ({"max_pairs_per_row": 0}, "got 0"),
        ({"max_pairs_per_row": -1.0}, r"got -1\.0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model(**options)


def test_noise_must_be_positive() -> None:
    with pytest.raises(InputError, match="num_noise=0"):
        NCE(num_noise=0)


# --- the state of a head advances after every update


def trained(made: WordVectors, steps: int = 1, workers: int = 1) -> WordVectors:
    """After training steps on the same text, one part for each worker."""
    made.workers = workers
    made.start_workers(steps)
    assert made.pool is not None
    try:
        for number in range(1, steps + 1):
            made.pool.run([Task(text(800, seed).int().numpy(), number, steps) for seed in range(workers)])
    finally:
        made.pool.close()
    return made


UPDATES = math.ceil(math.ceil(796 / L) / 2)  # of a worker in a step: 800 places with 4 borders, two blocks in an update


@pytest.fixture(params=["one worker", "forks", "threads"])
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    if request.param == "threads":
        monkeypatch.setattr(sys, "platform", "darwin")
    return 1 if request.param == "one worker" else 2


def test_an_estimate_of_z_advances_after_every_update(workers: int) -> None:
    """The first worker's is stored; without `advance` in the loop it would collect the estimates of all updates."""
    estimate = Estimated()
    made = trained(model(NCE(1.0, cosine=False, bias=estimate, num_noise=3), chunk=800), 2, workers)
    assert not made.has_closed_form
    assert int(estimate.steps) == 2 * UPDATES
    assert 1 < float(estimate.log_z) < 5


def test_a_bounded_temperature_stays_in_its_bounds_within_a_chunk(workers: int) -> None:
    """Without bounds it would rise to 3.9."""
    made = model(InfoNCE(Learnable(1.0, minimum=0.9, maximum=1.0), cosine=False), chunk=800, lr=0.02)
    used = torch.zeros(2).share_memory_()  # the most and the least temperature that a worker's head has used

    def record(head: Any, *_: Any) -> None:
        value = head.temperature().detach()
        used[0].copy_(torch.maximum(used[0], value))
        used[1].copy_(torch.maximum(used[1], 1 / value))

    made.head.register_forward_pre_hook(record)
    trained(made, 1, workers)
    excess = 1e-6 if workers == 1 else 0.5  # another worker's update that is not bounded yet
    assert used[0] <= 1 + excess
    assert used[1] <= 1 / 0.9 + excess


def test_a_scheduled_temperature_ends_with_the_run(workers: int) -> None:
    made = model(InfoNCE(Cosine(1.0, 0.5), cosine=False), chunk=796 * workers)
    trained(made, 2, workers)
    schedule = made.head.temperature
    assert int(schedule.step) == int(schedule.steps) == 2 * UPDATES
    assert float(schedule()) == 0.5
