"""The losses tile by tile are those of the whole matrix, values and gradients: every rule, head option and source."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from contrast.candidates import ABSENT, Candidates
from contrast.heads import NCE, ArcFace, CosFace, Estimated, Head, InfoNCE, Learnable, LearnedBias, LSoftmax
from contrast.losses import plan as plans
from contrast.losses import scores
from contrast.negatives import Bank, InBatch, Nearest, Paired, Queue, Source, Table, Tree
from contrast.samplers import LogUniform, Poisson, Uniform

B, C, D = 11, 14, 6


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a size that divides no shape here, so that every tile's border is crossed."""
    monkeypatch.setattr(plans, "TILE_ROWS", 4)
    monkeypatch.setattr(plans, "TILE_COLUMNS", 4)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def whole(count: int, below: int, seed: int) -> Tensor:
    return torch.randint(below, (count,), generator=torch.Generator().manual_seed(seed))


# --- rules: queries against candidates, some leaves among them


def among_themselves(ids: Tensor, **rules: Any) -> tuple[Tensor, Candidates]:
    z = numbers(len(ids), D).requires_grad_()
    return z, Candidates(z, ids, ids, self_index=torch.arange(len(ids)), **rules)


def against(ids: Tensor | None = None, positives: int = 0, **rules: Any) -> tuple[Tensor, Candidates]:
    query_ids = whole(B, 5, seed=1)
    if positives:
        rules["positives"] = numbers(B, positives, D, seed=3).requires_grad_()
    vectors = numbers(C, D, seed=2).requires_grad_()
    return numbers(B, D).requires_grad_(), Candidates(vectors, query_ids, ids, **rules)


def some_absent(values: Tensor) -> Tensor:
    return values.masked_fill(torch.arange(len(values)) % 5 == 2, ABSENT)


PAIRS = torch.arange(7).repeat(2)
LABELS = torch.tensor([3, 3, 3, 1, 1, 0, 0, 0, 8, 3, 9])  # 8 and 9 have no positive
GROUPS = {"excluded_groups": whole(C, 5, seed=4), "query_groups": whole(B, 5, seed=5)}
LOG_Q = numbers(C, seed=6) - 1

Rules = Callable[[], tuple[Tensor, Candidates]]
RULES: dict[str, Rules] = {
    "pairs": lambda: among_themselves(PAIRS, symmetric=True),
    "four views": lambda: among_themselves(torch.arange(3).repeat(4), symmetric=True),
    "labels": lambda: among_themselves(LABELS),
    "labels, groups": lambda: among_themselves(
        LABELS, excluded_groups=LABELS // 4, query_groups=LABELS // 4, symmetric=True
    ),
    "all of one label": lambda: among_themselves(torch.zeros(5, dtype=torch.long), symmetric=True),  # no negatives
    "one query, the rest": lambda: among_themselves(torch.tensor([1, 1, 2]), symmetric=True),
    "own in part": lambda: against(whole(C, 5, seed=7), self_index=torch.arange(B) - 3),
    "ids": lambda: against(whole(C, 5, seed=7)),
    "ids absent": lambda: against(some_absent(whole(C, 5, seed=7))),
    "ids, groups": lambda: against(whole(C, 5, seed=7), **GROUPS),
    "ids, log_q": lambda: against(whole(C, 5, seed=7), log_q=LOG_Q),
    "never drawn": lambda: against(whole(C, 5, seed=7), log_q=LOG_Q.masked_fill(torch.arange(C) == 3, -torch.inf)),
    "positives": lambda: against(positives=1),
    "positives, groups": lambda: against(positives=2, **GROUPS),
    "positives, groups absent": lambda: against(
        positives=1, **GROUPS | {"excluded_groups": some_absent(GROUPS["excluded_groups"])}
    ),
    "positives, log_q": lambda: against(positives=1, log_q=LOG_Q, positives_log_q=numbers(B, 1, seed=8)),
    "positives, log_q of them": lambda: against(positives=2, positives_log_q=numbers(B, 2, seed=8)),
    "positives, log_q shared": lambda: against(positives=1, log_q=LOG_Q),
    "positives, ids": lambda: against(
        whole(C, 5, seed=7), positives=1, log_q=LOG_Q, positives_log_q=numbers(B, 1, seed=8)
    ),
    "nobody": lambda: against(torch.full((C,), ABSENT), positives=1),
    "no candidates": lambda: _first(0),
    "no positive": lambda: against(whole(C, 5, seed=7) + 5),
}


def _first(count: int) -> tuple[Tensor, Candidates]:
    query, candidates = against(positives=1)
    return query, Candidates(candidates.vectors[:count], candidates.query_ids, positives=candidates.positives)


# --- heads

HEADS: dict[str, Callable[[float], Head]] = {
    "InfoNCE": lambda t: InfoNCE(Learnable(t, 1e-4)),
    "dot": lambda t: InfoNCE(Learnable(4 * t, 1e-4), cosine=False),
    "decoupled": lambda t: InfoNCE(Learnable(t, 1e-4), decoupled=True),
    "DCLW": lambda t: InfoNCE(Learnable(t, 1e-4), decoupled=True, positive_sigma=0.5),
    "debiased": lambda t: InfoNCE(Learnable(t, 1e-4), class_prior=0.1),
    "hard": lambda t: InfoNCE(Learnable(t, 1e-4), hardness=0.5),
    "hard, debiased": lambda t: InfoNCE(Learnable(t, 1e-4), class_prior=0.05, hardness=1.0),
    "CosFace": lambda t: InfoNCE(Learnable(t, 1e-4), margin=CosFace()),
    "ArcFace": lambda t: InfoNCE(Learnable(t, 1e-4), margin=ArcFace()),
    "L-Softmax": lambda t: InfoNCE(Learnable(4 * t, 1e-4), cosine=False, margin=LSoftmax(2)),
    "NCE": lambda t: NCE(Learnable(t, 1e-4), bias=LearnedBias(-2.0)),
    "negative sampling": lambda t: NCE(Learnable(4 * t, 1e-4), cosine=False, correction=False),
    "NCE, margin": lambda t: NCE(Learnable(t, 1e-4), bias=0.5, margin=CosFace()),
    "NCE, estimated": lambda t: NCE(Learnable(t, 1e-4), bias=Estimated()),
}


class Told(NamedTuple):
    losses: Tensor
    counted: Tensor
    grads: dict[str, Tensor]


def told(head: Head, query: Tensor, candidates: Candidates, tiled: bool) -> Told:
    """Losses, and the gradients of a weighted sum of them by name."""
    head.tiled = tiled
    losses, counted = head(query, candidates)
    named = {"query": query, "vectors": candidates.vectors, **dict(head.named_parameters())}
    if candidates.positives is not None:
        named["positives"] = candidates.positives
    weights = numbers(len(losses), seed=99).to(losses.dtype)  # of either sign
    grads = torch.autograd.grad((losses * weights).sum(), list(named.values()), allow_unused=True)
    return Told(losses.detach(), counted, dict(zip(named, grads, strict=True)))


def assert_same(rules: Rules, head: Head, **close: float) -> None:
    query, candidates = rules()
    if candidates.log_q is not None and isinstance(head, InfoNCE) and (head.class_prior or head.hardness):
        return  # refused
    first = head.double()
    second = copy.deepcopy(first)
    dense, tiled = (told(each, query, candidates, each is second) for each in (first, second))
    torch.testing.assert_close(tiled.losses, dense.losses, **close)
    assert torch.equal(tiled.counted, dense.counted)
    assert dense.losses.isfinite().all()
    for name, grad in dense.grads.items():
        got, expected = (torch.zeros(()) if g is None else g for g in (tiled.grads[name], grad))
        torch.testing.assert_close(got, expected, msg=lambda text, name=name: f"{name}: {text}", **close)
    if isinstance(first, NCE) and first.bias.needs_log_z:
        torch.testing.assert_close(*(each.bias.pending for each in (second, first)))


CLOSE = {
    "NCE, estimated": {"rtol": 1e-5, "atol": 1e-6},  # the estimate of Z is kept in float32
    "negative sampling": {"rtol": 1e-6, "atol": 1e-6},  # torch takes the slope of softplus(s > 20) for 1
}


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", HEADS)
def test_lists(name: str, rules: str) -> None:
    for temperature in (0.2, 0.005):  # a common shift, a running maximum
        head = HEADS[name](temperature)
        assert plans.plan(*RULES[rules](), head.scoring()._replace(tiled=True)).method in ("lists", "masks")
        assert_same(RULES[rules], head, **CLOSE.get(name, {}))


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", HEADS)
def test_masks_and_blocks(name: str, rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pairs are too many for a list: tiles make their masks, or blocks of rows are computed under autograd."""
    monkeypatch.setattr(plans, "MAX_PAIRS_PER_ROW", 0)
    monkeypatch.setattr(scores, "MIN_SCORES_BLOCKS", 3 * C)  # three queries in a block
    for temperature in (0.2, 0.005):
        assert_same(RULES[rules], HEADS[name](temperature), **CLOSE.get(name, {}))


@pytest.mark.parametrize("name", HEADS)
def test_the_gradients_can_be_differentiated_again(name: str) -> None:
    """A gradient penalty: the second derivatives are those of the whole matrix."""
    for rules in ("pairs", "positives, ids"):
        query, candidates = RULES[rules]()
        if candidates.log_q is not None and name in ("debiased", "hard", "hard, debiased"):
            continue  # refused
        head, found = HEADS[name](0.2).double(), []
        for tiled in (True, False):
            head.tiled = tiled
            losses, _ = head(query, candidates)
            head.advance()
            named = [query, *head.parameters()] + ([candidates.vectors] if candidates.vectors is not query else [])
            (gradient,) = torch.autograd.grad(losses.square().sum(), query, create_graph=True)
            found.append(torch.autograd.grad(gradient.square().sum(), named, allow_unused=True))
        for tiled_grad, dense_grad in zip(*found, strict=True):
            if tiled_grad is not None or dense_grad is not None:
                torch.testing.assert_close(tiled_grad, dense_grad, rtol=1e-5, atol=1e-7)


# --- sources: how their candidates are made, and the gradient of what they own

SIZE = 9
SOURCES: dict[str, tuple[Callable[[], Source], int]] = {  # and views of an image
    "in batch": (InBatch, 2),
    "in batch, four views": (InBatch, 4),
    "paired": (lambda: Paired(reverse=True), 2),
    "queue, empty": (lambda: Queue(SIZE, D), 2),
    "queue": (lambda: pushed(Queue(SIZE, D)), 2),
    "queue, in batch": (lambda: pushed(Queue(SIZE, D, in_batch=True)), 2),
    "queue, positives": (lambda: pushed(Queue(SIZE, D, in_batch=True, positives=True)), 2),
    "nearest": (lambda: pushed(Nearest(SIZE, D)), 2),
    "bank": (lambda: Bank(SIZE, D), 2),
    "bank, sampled": (lambda: Bank(SIZE, D, Uniform(SIZE), draws=5), 2),
    "table": (lambda: Table(SIZE, D), 1),
    "table, sampled": (lambda: Table(SIZE, D, LogUniform(SIZE), draws=5), 2),
    "table, poisson": (lambda: Table(SIZE, D, Poisson(LogUniform(SIZE), 3.0)), 2),
    "bank, proximity": (lambda: Bank(SIZE, D, proximity=0.5, draws=4), 2),
    "tree": (lambda: Tree(torch.arange(1, SIZE + 1), D), 1),
}
IDS = torch.tensor([1, 4, 2, 0, 4])


def pushed(source: Any) -> Source:
    source.rows.push(numbers(6, D, seed=11), torch.tensor([4, 1, 8, 7, 3, 1]))  # the rest is not filled yet
    return source


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("head", ["InfoNCE", "NCE"])
@pytest.mark.parametrize("name", SOURCES)
def test_sources(name: str, head: str, grouped: bool) -> None:
    make, views = SOURCES[name]
    if name == "queue, positives" and grouped:
        pytest.skip("refused: rows hold groups then")
    found = []
    for tiled in (False, True):
        torch.manual_seed(0)
        source, loss = make().double(), HEADS[head](0.2).double()
        loss.tiled = tiled
        query, key = (numbers(views, len(IDS), D, seed=seed).requires_grad_() for seed in (21, 22))
        asked = source(query, key, IDS, IDS // 3 if grouped else None, torch.Generator().manual_seed(1))
        if tiled:
            methods = {plans.plan(q, candidates, loss.scoring()).method for q, candidates in asked}
            assert methods <= ({"blocks"} if name in ("bank, proximity", "tree") else {"lists", "masks"})
        losses = torch.cat([loss(q, candidates)[0] for q, candidates in asked])
        named = {"query": query, "key": key, **dict(source.named_parameters()), **dict(loss.named_parameters())}
        grads = torch.autograd.grad(losses.mean(), list(named.values()), allow_unused=True)
        found.append({"losses": losses, **{k: g for k, g in zip(named, grads, strict=True) if g is not None}})
    dense, tiled = found
    assert dense.keys() == tiled.keys()
    for each in dense:
        torch.testing.assert_close(tiled[each], dense[each])


def test_each_queries_own_log_q_and_label_smoothing_are_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "MIN_SCORES_BLOCKS", 2 * C)
    query, candidates = against(whole(C, 5, seed=7), log_q=numbers(B, C, seed=1))
    assert_same(lambda: (query, candidates), InfoNCE(Learnable(0.1)))
    assert plans.plan(query, candidates, InfoNCE(tiled=True).scoring()).method == "blocks"
    assert_same(RULES["labels, groups"], InfoNCE(Learnable(0.1), label_smoothing=0.1))


def test_noise_that_counts_as_k_draws_is_tiled() -> None:
    for correction in (True, False):
        for bias in (LearnedBias(-2.0), Estimated()) if correction else (LearnedBias(-2.0),):
            head = NCE(Learnable(0.2), bias=bias, correction=correction, num_noise=3.0)
            for rules in ("positives, log_q", "labels, groups"):  # one number of draws for all queries, and several
                assert_same(RULES[rules], head, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["InfoNCE", "NCE"])
def test_rules_of_each_query_make_masks(name: str) -> None:
    each = torch.randint(5, (B, C), generator=torch.Generator().manual_seed(1))
    assert_same(lambda: against(each, excluded_groups=each // 2, query_groups=whole(B, 3, seed=2)), HEADS[name](0.2))


@pytest.mark.parametrize(("scores", "tiled", "method"), [
    (B * C, None, "lists"), (B * C + 1, None, "matrix"), (1, False, "matrix"), (B * C + 1, True, "lists")
])  # fmt: skip
def test_the_choice_is_by_size(scores: int, tiled: bool | None, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "MIN_SCORES_CPU", scores)
    assert plans.plan(*RULES["ids"](), InfoNCE(tiled=tiled).scoring()).method == method
