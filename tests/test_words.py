"""Skip-gram and CBOW: blocks against word2vec's loops, steps written out against autograd and against naive sums."""

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from contrast.encoders import SubwordTable, WordTable
from contrast.encoders.ngrams import ngram_buckets
from contrast.encoders.subwords import Subwords
from contrast.errors import InputError
from contrast.heads import NCE, Cosine, Estimated, InfoNCE, Learnable, LearnedBias
from contrast.negatives import Table, Tree
from contrast.samplers import Poisson, Unigram
from contrast.words import WordVectors, by_autograd, closed_form
from contrast.words.blocks import Passage, Passages, cut, keep_probability
from contrast.words.descent import Descent
from contrast.words.learned import check_learned, gain, shuffled
from contrast.words.model import Task
from contrast.words.start import usual_rate

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
        **({"max_pairs_per_row": None, "blocks": 2} | options),
    ).double()
    torch.nn.init.normal_(made.encoder.weight, std=0.7)
    return made


def passages(made: WordVectors, ids: Tensor | None = None) -> Passages:
    return cut(text() if ids is None else ids, made.keep, made.window, made.block * made.blocks, generator())


def closed_step(made: WordVectors, text: Passage, drawn: Tensor | None, counts: Tensor, lr: float = 0.1) -> Tensor:
    """The mean loss before the step."""
    descent = Descent(lr, made.max_pairs_per_row, counts)
    parts = made.encoder, made.negatives, made.head
    loss = closed_form.step(*parts, text, made.method, drawn, descent, with_loss=True)
    assert loss is not None
    return loss[0] / loss[1]


def scored(made: WordVectors, text: Passage, random: torch.Generator) -> list[by_autograd.Scored]:
    return by_autograd.score(made.encoder, made.negatives, made.head, text, made.method, made.block, random)


def autograd_step(made: WordVectors, text: Passage, random: torch.Generator, counts: Tensor, lr: float = 0.1) -> Tensor:
    """The mean loss before the step."""
    descent, blocks = Descent(lr, made.max_pairs_per_row, counts), scored(made, text, random)
    by_autograd.step(made.encoder, made.negatives, made.head, blocks, descent)
    return torch.cat([each.losses.detach() for each in blocks]).mean()


def losses(made: WordVectors, text: Passage, random: torch.Generator) -> Tensor:
    return torch.cat([each.losses for each in scored(made, text, random)])


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


@pytest.mark.parametrize(("window", "size"), [(3, 4), (3, 16), (1, 8), (9, 5)])
def test_pairs_are_those_of_two_loops(window: int, size: int) -> None:
    ids = text()
    made = cut(ids, torch.ones(V), window, size, generator())
    places = (ids >= 0).nonzero().squeeze(1)
    reach = dict(zip(places.tolist(), made.reach[2 * window :].tolist(), strict=False))
    assert {1, window} <= set(reach.values()) <= set(range(1, window + 1))
    expected = naive_pairs(ids, reach)
    got, at = [], []
    for n in range(made.passages):
        part = made.passage(n)
        centre, around = part.pairs()
        assert centre.tolist() == sorted(centre.tolist())
        got += zip(part.centre[centre].tolist(), part.around[around].tolist(), strict=True)
        at += zip((n * size + centre).tolist(), (n * size + around - window).tolist(), strict=True)
    assert sorted(got) == sorted((int(ids[i]), int(ids[j])) for i, j in expected)
    rank = {int(place): n for n, place in enumerate(places)}  # a word's number among those of the text
    assert sorted(at) == sorted((rank[i], rank[j]) for i, j in expected)


def test_dropped_words_bring_their_neighbours_closer() -> None:
    keep = torch.ones(V)
    keep[1] = 0
    part = cut(torch.tensor([0, 1, 2, -1, 3]), keep, 1, 4, generator()).passage(0)
    assert part.centre.tolist() == [0, 2, 3, 0]
    centre, around = part.pairs()
    got = zip(part.centre[centre].tolist(), part.around[around].tolist(), strict=True)
    assert sorted(got) == [(0, 2), (2, 0)]


@pytest.mark.parametrize("ids", [torch.empty(0, dtype=torch.long), torch.tensor([-1, -1])])
def test_a_span_without_words_has_no_passages(ids: Tensor) -> None:
    assert cut(ids, torch.ones(V), W, L, generator()).passages == 0


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
    made = cut(ids, torch.full((V,), 0.3), W, L, generator())
    kept = (made.line >= 0).sum().item()
    assert abs(kept - 6000) < 4 * math.sqrt(20_000 * 0.3 * 0.7)


def naive_step(
    made: WordVectors, part: Passage, noise: list[list[tuple[int, float]]], rate: float
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

    centre, around = part.centre.tolist(), part.around.tolist()
    context: dict[int, list[int]] = {i: [] for i in range(len(centre))}
    for i, j in zip(*map(Tensor.tolist, part.pairs()), strict=True):
        context[i].append(j)
    for i, places in context.items():
        if made.method == "skipgram":
            for j in places:
                total = total + loss(inputs[centre[i]], around[j], noise[i // L])
        elif places:
            query = sum(inputs[around[j]] for j in places) / len(places)
            total = total + loss(query, centre[i], noise[i // L])
    of_inputs, of_outputs = torch.autograd.grad(total, (inputs, outputs))
    return (inputs - rate * of_inputs).detach(), (outputs - rate * of_outputs).detach()


def test_each_method_has_its_own_learning_rate() -> None:
    assert model().lr == model(method="skipgram").lr == 0.025
    assert model(method="cbow").lr == 0.1
    assert model(method="cbow", lr=0.2).lr == 0.2
    assert usual_rate("skipgram", 60e6) == usual_rate("skipgram", 1e9) == 0.025
    assert usual_rate("skipgram", 25e6) == pytest.approx(0.025 * math.sqrt(2.4))
    assert usual_rate("cbow", 25e6) == pytest.approx(0.1 * math.sqrt(2.4))
    assert usual_rate("skipgram", 12.5e6) == usual_rate("skipgram", 0) == 0.05


def test_a_resumed_run_keeps_its_rate() -> None:
    pytest.importorskip("numba")
    made, resumed, older = model(chunk=1000), model(chunk=1000), model(chunk=1000)
    made.start_workers(25_000)
    made.teardown("fit")
    checkpoint: dict[str, Any] = {"state_dict": {}}
    made.on_save_checkpoint(checkpoint)
    resumed.on_load_checkpoint(checkpoint)
    older.on_load_checkpoint({name: value for name, value in checkpoint.items() if name != "lr"})
    for each in (resumed, older):
        each.start_workers(100)  # so few words would have a larger one
        each.teardown("fit")
    assert resumed.lr == made.lr == pytest.approx(0.025 * math.sqrt(2.4))
    assert older.lr == 0.025


def test_without_the_compiled_loop_the_rate_is_word2vecs() -> None:
    made = model(chunk=1000, compiled=False)
    made.start_workers(100)
    made.teardown("fit")
    assert made.lr == 0.025


@pytest.mark.parametrize("given", [None, 0.07])
def test_the_rate_fits_the_words_of_the_run(given: float | None) -> None:
    pytest.importorskip("numba")
    made = model(lr=given, chunk=1000)
    made.start_workers(25_000)  # 25 million words, none of which is dropped
    made.teardown("fit")
    assert made.lr == (pytest.approx(0.025 * math.sqrt(2.4)) if given is None else given)


@pytest.mark.parametrize("method", ["skipgram", "cbow"])
@pytest.mark.parametrize(("correction", "bias"), [(False, 0.0), (True, 0.0), (True, -1.5), (False, 0.5)])
def test_a_step_is_that_of_naive_sums(method: Any, correction: bool, bias: float) -> None:
    head = NCE(temperature=1.0, cosine=False, bias=bias, correction=correction, num_noise=3)
    made = model(head, method=method, blocks=3)
    assert made.has_closed_form
    part = passages(made).passage(0)
    drawn = made.negatives.draw(3, generator(9))
    shares = [[(word, 1 / len(row)) for word in row] for row in drawn.tolist()]
    expected = naive_step(made, part, shares, 0.1)
    closed_step(made, part, drawn, torch.zeros(V))
    torch.testing.assert_close(made.encoder.weight.detach(), expected[0], rtol=2e-6, atol=2e-7)
    torch.testing.assert_close(made.negatives.vectors.detach(), expected[1], rtol=2e-6, atol=2e-7)


def sampled() -> Table:
    return Table(V, D, Unigram(COUNTS), draws=6, std=0.5)


def whole() -> Table:
    return Table(V, D, std=0.5)


def tree() -> Tree:
    """Its nodes are in part shared by all queries, in part near columns."""
    made = Tree(COUNTS, D, shared=3)
    torch.nn.init.normal_(made.vectors, std=0.5)
    return made


def estimated() -> Estimated:
    """In training, with an estimate of Z of an earlier step."""
    bias = Estimated()
    bias.log_z.fill_(1.7)
    bias.steps.fill_(5)
    return bias


WRITTEN_OUT: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "negative sampling": (lambda: NCE(1.0, False, correction=False, num_noise=3), sampled),
    "NCE": (lambda: NCE(1.0, False, num_noise=3), sampled),
    "NCE, k = C": (lambda: NCE(0.7, False, bias=-1.5), sampled),
    "NCE, learned Z": (lambda: NCE(Learnable(0.6), False, bias=LearnedBias(-1.0), num_noise=3), sampled),
    "NCE, estimated Z": (lambda: NCE(1.0, False, bias=estimated(), num_noise=3), sampled),
    "NCE of all words": (lambda: NCE(1.0, False, bias=LearnedBias(-2.0)), whole),
    "negative sampling of all words": (lambda: NCE(1.0, False, num_noise=3), whole),
    "sampled softmax": (lambda: InfoNCE(1.0, False), sampled),
    "sampled softmax, learned temperature": (lambda: InfoNCE(Learnable(0.6), False), sampled),
    "full softmax": (lambda: InfoNCE(1.0, False), whole),
    "full softmax, scheduled temperature": (lambda: InfoNCE(Cosine(0.9, 0.5, steps=10), False), whole),
    "hierarchical softmax": (lambda: NCE(1.0, False), tree),
    "hierarchical softmax, learned temperature": (lambda: NCE(Learnable(0.6), False), tree),
}


@pytest.mark.parametrize("method", ["skipgram", "cbow"])
@pytest.mark.parametrize("limit", [None, 2.5])
@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_a_step_written_out_is_that_of_autograd(name: str, limit: float | None, method: Any) -> None:
    """In loss, tables and the head's parameters, with a limit too. Each update of the text in turn."""
    head, source = WRITTEN_OUT[name]
    out, by_hand = (
        model(head(), source, method=method, max_pairs_per_row=limit, blocks=1 if "estimated" in name else 3)
        for _ in range(2)
    )
    assert out.has_closed_form
    counts, text = torch.zeros(V, dtype=torch.float64), passages(out)
    for n in range(text.passages):
        draws = generator(n)
        loss = closed_step(out, text.passage(n), out.negatives.draw(out.blocks, draws), counts)
        expected = autograd_step(by_hand, text.passage(n), generator(n), counts)
        torch.testing.assert_close(loss, expected, rtol=2e-6, atol=2e-7)
        assert not counts.any()
        for each in (out, by_hand):
            each.head.advance()
        for (key, got), value in zip(out.state_dict().items(), by_hand.state_dict().values(), strict=True):
            torch.testing.assert_close(got, value, rtol=2e-5, atol=2e-6, msg=lambda text, key=key: f"{key}: {text}")


WORDS = ("the", "größe", "größte", "猫犬", "a", "\U0001d518x", "other", "mother", "é", "don't", "in", "within")


def ngrams_in_loops(word: str, minn: int, maxn: int, buckets: int) -> list[int]:
    """As in fastText.cc: FNV-1a, of bytes that are signed."""
    found = []
    for start in range(len(word) + 2):
        for n in range(minn, maxn + 1):
            part = f"<{word}>"[start : start + n]
            if len(part) == n and part not in ("<", ">"):
                state = 2166136261
                for byte in part.encode():
                    state = ((state ^ (byte if byte < 128 else byte + 0xFFFFFF00)) * 16777619) % 2**32
                found.append(state % buckets)
    return found


@pytest.mark.parametrize(("minn", "maxn", "buckets"), [(3, 6, 2_000_000), (1, 2, 7), (4, 4, 100), (6, 9, 50)])
def test_ngrams_are_those_of_loops(minn: int, maxn: int, buckets: int) -> None:
    found, number = ngram_buckets(WORDS, minn, maxn, buckets)
    expected = [sorted(ngrams_in_loops(word, minn, maxn, buckets)) for word in WORDS]
    assert [sorted(part.tolist()) for part in found.split(number.tolist())] == expected


FLORET = {  # what the package floret 0.10.5 tells: (minn, maxn, bucket, hashCount) and word -> its buckets
    ((2, 3, 100, 2), "a"): [5, 22, 5, 84, 5, 22, 81, 78],
    ((2, 3, 100, 2), "größe"): [
        *(12, 10, 78, 35, 67, 88, 20, 43, 89, 61, 32, 34),
        *(63, 16, 61, 57, 0, 79, 20, 85, 26, 40, 94, 54),
    ],
    ((2, 3, 100, 2), "Donaudampfschifffahrt"): [  # longer than a block of the hash
        *(32, 22, 20, 61, 48, 84, 69, 69, 82, 30, 67, 97, 13, 48, 46, 86, 72, 84, 5, 29, 48, 25, 36, 64, 11, 20, 9, 48),
        *(42, 26, 16, 97, 57, 80, 67, 77, 81, 26, 37, 30, 92, 19, 94, 8, 53, 9, 58, 11, 23, 50, 38, 79, 93, 85, 8, 84),
        *(41, 95, 37, 74, 32, 47, 57, 2, 21, 98, 57, 2, 86, 9, 76, 94, 26, 52, 67, 18, 2, 89, 99, 33, 17, 6, 35, 29),
        *(19, 20, 27, 12),
    ],
    ((1, 2, 50_000, 4), "\U0001d518x"): [
        *(4784, 34572, 33851, 32351, 15283, 2122, 28837, 34477, 42600, 35022, 11935, 21297),
        *(35475, 3158, 41408, 14834, 42175, 48301, 41819, 29102, 26523, 13209, 5515, 29759),
    ],
}


@pytest.mark.parametrize(("sizes", "word"), FLORET)
def test_ngrams_are_those_of_floret(sizes: tuple[int, int, int, int], word: str) -> None:
    found, number = ngram_buckets(["in", word], *sizes)
    assert sorted(found[int(number[0]) :].tolist()) == sorted(FLORET[sizes, word])


@pytest.mark.parametrize(
    ("sizes", "used"),
    [([1, 2**62, 9, 2], [0]), ([3, 6, 9, 2], [9]), ([3, 6, 9], [2, 1]), ([3, 6, 9, 5], [0]), ([3], [])],
)
def test_ngrams_of_a_file_that_cannot_be(sizes: list[int], used: list[int]) -> None:
    """Buckets that there are not are refused; n-grams of more letters than a word has take no time."""
    tensors = {"subwords": torch.tensor(sizes), "subword_buckets": torch.tensor(used)}
    tensors["subword_vectors"] = torch.ones(len(used), 2)
    if sizes[1:2] == [2**62]:
        assert Subwords.of(tensors).compose(["abc"])[1].shape[1] == 2
        return
    with pytest.raises(InputError, match="buckets"):
        Subwords.of(tensors)


def test_words_without_ngrams() -> None:
    table = SubwordTable(2, ["ab", "cd"], 4, minn=20, maxn=20)
    assert table.subwords().compose(["abc"]) == ([], pytest.approx(torch.zeros(0, 4)))


@pytest.mark.parametrize("hashes", [0, 2])
@pytest.mark.parametrize("method", ["skipgram", "cbow"])
@pytest.mark.parametrize(
    "name", ["negative sampling", "NCE, learned Z", "sampled softmax", "full softmax", "hierarchical softmax"]
)
def test_a_step_of_subwords_is_that_of_autograd(name: str, method: Any, hashes: int) -> None:
    """In the loss and all tables: each row of a word takes the gradient of its mean. N-grams share buckets here."""
    head, source = WRITTEN_OUT[name]
    made = model(head(), source, method=method, blocks=3)
    made.encoder = SubwordTable(V, WORDS, D, minn=2, maxn=4, buckets=40, hashes=hashes).double()
    torch.nn.init.normal_(made.encoder.weight, std=0.7)
    before, used = made.encoder.weight.detach().clone(), made.encoder.used.tolist()
    if hashes:
        rows = [
            [used.index(bucket) for bucket in ngram_buckets([word], 2, 4, 40, hashes)[0].tolist()] for word in WORDS
        ]
    else:
        found = [[V + used.index(bucket) for bucket in ngrams_in_loops(word, 2, 4, 40)] for word in WORDS]
        rows = [[row, *others] for row, others in enumerate(found)]
    means = WordTable(V, D)
    means.weight = torch.nn.Parameter(torch.stack([before[each].mean(dim=0) for each in rows]))
    torch.testing.assert_close(made.encoder.whole(), means.weight)

    text = passages(made).passage(0)
    blocks = by_autograd.score(means, made.negatives, made.head, text, method, L, generator(1))
    losses = torch.cat([each.losses for each in blocks])
    others = [made.negatives.vectors, *made.head.parameters()]
    gradient, *of_others = torch.autograd.grad(losses.sum(), [means.weight, *others])
    expected = [before] + [each.detach() - 0.1 * grad for each, grad in zip(others, of_others, strict=True)]
    for each, grad in zip(rows, gradient.to_dense(), strict=True):
        for row in each:
            expected[0][row] -= 0.1 * grad

    counts = torch.zeros(len(before), dtype=torch.float64)
    loss = closed_step(made, text, made.negatives.draw(3, generator(1)), counts)
    torch.testing.assert_close(loss, losses.detach().mean(), rtol=2e-6, atol=2e-7)
    for got, value in zip([made.encoder.weight, *others], expected, strict=True):
        torch.testing.assert_close(got.detach(), value, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("method", ["skipgram", "cbow"])
@pytest.mark.parametrize("name", [*WRITTEN_OUT, "cosine"])
def test_the_gain_is_over_a_model_that_scores_all_pairs_0(name: str, method: Any) -> None:
    """Output vectors of 0 do this. The model is not changed."""
    makers = WRITTEN_OUT | {"cosine": (lambda: NCE(0.5, True, num_noise=2), sampled)}
    head, source = makers[name]
    made = model(head(), source, method=method, blocks=3)
    before = {key: value.clone() for key, value in made.state_dict().items()}
    trained = gain(made, text())
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())
    torch.nn.init.zeros_(made.negatives.vectors)
    none = gain(made, text())
    assert none.loss == pytest.approx(none.untrained, rel=1e-6)
    assert (none.untrained, none.pairs) == (pytest.approx(trained.untrained, rel=1e-6), trained.pairs)
    assert abs(trained.loss - none.loss) > 0.01
    with pytest.raises(InputError, match=rf"nothing was learned: .* {none.untrained:.4f}, over {none.pairs} pairs"):
        check_learned(made, text(), 37)


def test_the_shuffled_text_has_the_same_words_and_contexts() -> None:
    made = passages(model())
    assert made.passages > 2
    mixed = shuffled(made, 2, generator(0))
    inside = torch.zeros(len(made.ids), dtype=torch.bool)
    inside[: 2 * made.window + 2 * made.size] = True
    inside &= made.reach > 0
    assert not torch.equal(mixed.ids, made.ids)
    assert torch.equal(mixed.ids[inside].sort().values, made.ids[inside].sort().values)
    assert torch.equal(mixed.ids[~inside], made.ids[~inside])
    for n in range(made.passages):
        assert torch.equal(mixed.passage(n).band.pairs, made.passage(n).band.pairs)


@pytest.mark.parametrize("method", ["skipgram", "cbow"])
@pytest.mark.parametrize(
    ("head", "source"),
    [
        (lambda: NCE(temperature=0.5, cosine=True, num_noise=2), sampled),
        (lambda: InfoNCE(temperature=1.0, cosine=False, decoupled=True), sampled),
        (lambda: InfoNCE(temperature=1.0, cosine=False), lambda: Table(V, D, Poisson(Unigram(COUNTS), 6), std=0.5)),
    ],
    ids=["cosine", "decoupled", "Poisson draws"],
)
def test_other_heads_lower_their_loss_by_autograd(method: Any, head: Any, source: Any) -> None:
    made = model(head(), source, method=method)
    assert not made.has_closed_form
    part = passages(made).passage(0)
    before = float(losses(made, part, generator(0)).sum())
    for _ in range(20):
        autograd_step(made, part, generator(0), torch.zeros(V), 0.05)
    assert float(losses(made, part, generator(0)).sum()) < 0.9 * before


def test_a_head_of_ones_own_is_not_taken_for_its_base() -> None:
    class Own(NCE):
        def forward(self, query: Tensor, candidates: Any) -> tuple[Tensor, Tensor]:
            losses, counted = super().forward(query, candidates)
            return 2 * losses, counted

    assert not model(Own(1.0, cosine=False)).has_closed_form


@pytest.mark.slow
def test_sharing_noise_changes_the_draws_and_not_the_expected_loss() -> None:
    """Mean over many draws of the shared form = k E_q[softplus(s)] + softplus(-s of the word itself)."""
    made = model(blocks=1)
    part = passages(made).passage(0)
    draws = generator(1)
    with torch.no_grad():
        many = torch.stack([losses(made, part, draws) for _ in range(4000)])  # [runs, P]
        centre, around = part.pairs()
        scores = made.encoder.weight[part.centre[centre]] @ made.negatives.vectors.T  # [P, V]
        q = made.negatives.sampler.log_q.double().exp()
        own = scores.gather(1, part.around[around][:, None]).squeeze(1)
        expected = torch.nn.functional.softplus(-own) + 3 * torch.nn.functional.softplus(scores) @ q
    error = many.std(dim=0) / math.sqrt(len(many))
    assert ((many.mean(dim=0) - expected).abs() < 5 * error).all()


@pytest.mark.parametrize("method", ["skipgram", "cbow"])
def test_sharing_noise_does_not_change_the_expected_gradient(method: Any) -> None:
    """The mean step over all V^2 outcomes of two shared draws is that of the expectation over a pair's own k draws."""
    made = model(source=lambda: Table(V, D, sampler=Unigram(COUNTS), draws=2, std=0.5), method=method, blocks=1)
    part = passages(made).passage(1)
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
    """Each table's step is that without a limit, scaled row by row by limit / the load of the pairs that change it."""
    free, held = model(method=method, blocks=3), model(method=method, blocks=3, max_pairs_per_row=2.5)
    part = passages(free).passage(0)
    drawn = free.negatives.draw(3, generator(9))
    start = free.encoder.weight.detach().clone(), free.negatives.vectors.detach().clone()
    loads = torch.zeros(V, dtype=torch.float64)
    closed_step(free, part, drawn, loads)
    closed_step(held, part, drawn, loads)
    assert not loads.any()
    of_inputs, of_outputs = torch.zeros(V), torch.zeros(V)  # pairs of each row
    words, targets = part.centre.tolist(), part.around.tolist()
    context: dict[int, list[int]] = {i: [] for i in range(len(words))}
    for i, j in zip(*map(Tensor.tolist, part.pairs()), strict=True):
        context[i].append(targets[j])
    of_query, of_answers = [], []  # |v|^2 that each pair brings to its answers and to its query
    for i, others in context.items():
        query = start[0][words[i]] if method == "skipgram" else sum(start[0][j] for j in others) / max(1, len(others))
        for answer in others if method == "skipgram" else [words[i]] * bool(others):
            noise = drawn[i // L].tolist()  # each weighs k / M
            of_query.append(float(query @ query))
            of_answers.append(float(start[1][answer].square().sum() + 3 / 6 * start[1][noise].square().sum()))
            of_outputs[answer] += 1
            for word in noise:
                of_outputs[word] += 3 / 6
        for word in [words[i]] * len(others) if method == "skipgram" else others:
            of_inputs[word] += 1 if method == "skipgram" else 1 / len(others) ** 2
    of_inputs *= sum(of_answers) / len(of_answers)
    of_outputs *= sum(of_query) / len(of_query)
    for pairs, before, whole, got in zip(
        (of_inputs, of_outputs),
        start,
        (free.encoder.weight, free.negatives.vectors),
        (held.encoder.weight, held.negatives.vectors),
        strict=True,
    ):
        assert (pairs > 2.5).any()
        scale = (2.5 / pairs.clamp(min=2.5)).double()[:, None]
        torch.testing.assert_close(got.detach(), before + scale * (whole.detach() - before), rtol=1e-5, atol=1e-6)


def test_a_step_changes_the_rows_of_its_words_and_draws_alone() -> None:
    made = model(blocks=1)
    part = passages(made, torch.tensor([0, 1, 2, 1])).passage(0)
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


@pytest.mark.parametrize("sparse", [True, False])
def test_a_node_of_the_tree_takes_in_no_more_than_the_limit(sparse: bool) -> None:
    """The padding of short paths counts for nothing."""
    held, free = (
        model(NCE(1.0, cosine=False), lambda: Tree(COUNTS, D, sparse=sparse), max_pairs_per_row=limit, blocks=3)
        for limit in (4.0, None)
    )
    part = passages(free).passage(0)
    for each in (held, free):
        torch.nn.init.normal_(each.negatives.vectors, std=0.5, generator=generator(2))
    start, free_inputs = free.negatives.vectors.detach().clone(), free.encoder.weight.detach().clone()
    for each in (held, free):
        autograd_step(each, part, generator(9), torch.zeros(V, dtype=torch.float64), 0.1)
    pairs = torch.zeros(V - 1)
    centre, around = part.pairs()
    for word in part.around[around].tolist():
        for node in free.negatives.path[word].tolist():
            pairs[node] += node >= 0
    pairs *= free_inputs[part.centre[centre]].square().sum(dim=1).mean()
    assert (pairs > 4).any()
    assert ((pairs > 0) & (pairs < 4)).any()
    scale = (4 / pairs.clamp(min=4)).double()[:, None]
    expected = start + scale * (free.negatives.vectors.detach() - start)
    torch.testing.assert_close(held.negatives.vectors.detach(), expected)


@pytest.mark.parametrize("learned", ["bias", "temperature"])
def test_a_learned_scalar_takes_in_no_more_than_the_limit(learned: str) -> None:
    """Its load is the sum, over pairs and all that each is compared with, of the squared derivative of the score."""

    def made(limit: float | None) -> WordVectors:
        scalars = (1.0, LearnedBias(0.5)) if learned == "bias" else (Learnable(0.6), 0.5)
        return model(NCE(scalars[0], cosine=False, bias=scalars[1]), max_pairs_per_row=limit)

    held, free = made(4.0), made(None)
    part = passages(free).passage(0)
    (start,) = (float(each.detach()) for each in held.head.parameters())
    load = 0.0
    for each in by_autograd.score(free.encoder, free.negatives, free.head, part, "skipgram", L, generator(9)):
        candidates = each.candidates
        dots = torch.cat([each.queries[:, None] * candidates.positives, each.queries[:, None] * candidates.vectors], 1)
        scores = dots.detach().sum(dim=2) / 0.6
        load += float(scores.square().sum()) if learned == "temperature" else scores.numel()
    for each in (held, free):
        autograd_step(each, part, generator(9), torch.zeros(V, dtype=torch.float64), 0.1)
    change, whole = (float(next(iter(each.head.parameters())).detach()) - start for each in (held, free))
    assert load > 4
    assert change == pytest.approx(4 / load * whole)


@pytest.mark.parametrize(
    "head",
    [
        lambda: NCE(0.07, cosine=False, num_noise=3),
        lambda: NCE(Learnable(0.07), cosine=False, num_noise=3),
        lambda: NCE(1.0, cosine=False, bias=LearnedBias(-3.0), num_noise=3),
    ],
    ids=["low temperature", "learned temperature", "learned bias"],
)
@pytest.mark.parametrize("method", ["skipgram", "cbow"])
def test_many_pairs_at_once_do_not_overshoot(head: Callable[[], Any], method: Any) -> None:
    """The loss falls from update to update, although an update sums the steps of thousands of pairs."""
    made = model(head(), method=method, max_pairs_per_row=64, blocks=64)
    ids, random, loads, found = torch.arange(8000) // 2 % V, generator(1), torch.zeros(V), []
    parts = passages(made, ids)
    for n in [*range(parts.passages)] * 3:
        found.append(float(closed_step(made, parts.passage(n), made.negatives.draw(64, random), loads)))
        made.head.advance()
    assert sum(found[-5:]) / 5 < 0.8 * found[0]
    assert max(found[5:]) < found[0]


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
    part = passages(made).passage(0)
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
    trained(model(NCE(1.0, cosine=False, bias=estimate, num_noise=3), chunk=800), 2, workers)
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
