"""The lists behind the tiles, pair by pair: which are positive, which are no negatives, and in which tile they lie."""

import pytest
import torch

from contrast.candidates import ABSENT, Candidates
from contrast.losses.tiled import plan as plans
from contrast.losses.tiled import statistics
from contrast.losses.tiled.pairs import Pairs, exceptions, positive_pairs, present
from contrast.losses.tiled.plan import Plan
from contrast.losses.tiled.statistics import layout, of_positives

MANY = 10**6
B, C = 9, 13


def drawn(seed: int, ids: bool = True, groups: bool = True, own: bool = True) -> Candidates:
    """Few ids and groups, so that they come up more than once, some ABSENT; some queries not among the candidates."""
    generator = torch.Generator().manual_seed(seed)

    def some(count: int, absent: bool = False) -> torch.Tensor:
        values = torch.randint(4, (count,), generator=generator) - 1
        hidden = torch.rand(count, generator=generator) < 0.2
        return values.masked_fill(hidden, ABSENT) if absent else values

    return Candidates(
        torch.randn(C, 2, generator=generator),
        some(B),
        ids=some(C, absent=True) if ids else None,
        self_index=torch.randint(-1, C, (B,), generator=generator) if own else None,
        excluded_groups=some(C, absent=True) if groups else None,
        query_groups=some(B) if groups else None,
    )


RULES = [{"ids": a, "groups": b, "own": c} for a in (True, False) for b in (True, False) for c in (True, False)]


def naive(candidates: Candidates) -> tuple[set[tuple[int, int]], set[tuple[int, int]], set[int]]:
    """Positive pairs, present pairs that are no negatives, and the columns that may count, by the rules as written."""
    positive, excepted, there = set(), set(), set()
    for j in range(len(candidates)):
        hidden = [rule is not None and rule[j] == ABSENT for rule in (candidates.ids, candidates.excluded_groups)]
        if any(hidden):
            continue
        there.add(j)
        for i in range(len(candidates.query_ids)):
            itself = candidates.self_index is not None and candidates.self_index[i] == j
            if candidates.ids is not None and candidates.query_ids[i] == candidates.ids[j] and not itself:
                positive.add((i, j))
            same_group = (
                candidates.excluded_groups is not None and candidates.query_groups[i] == candidates.excluded_groups[j]
            )
            if itself or same_group or (i, j) in positive:
                excepted.add((i, j))
    return positive, excepted, there


def listed(pairs: Pairs | None) -> list[tuple[int, int]]:
    assert pairs is not None
    return list(zip(pairs.row.tolist(), pairs.column.tolist(), strict=True))


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_lists_are_the_rules_pair_by_pair(rules: dict[str, bool]) -> None:
    for seed in range(5):
        candidates = drawn(seed, **rules)
        positive, excepted, there = naive(candidates)
        found = positive_pairs(candidates, MANY)
        others = exceptions(candidates, found, MANY)
        assert sorted(listed(found)) == sorted(positive)  # each once
        assert [row for row, _ in listed(found)] == sorted(row for row, _ in positive)
        assert sorted(listed(others)) == sorted(excepted)
        assert set(present(candidates).nonzero().flatten().tolist()) == there


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_a_layout_counts_what_the_masks_count(rules: dict[str, bool]) -> None:
    for seed in range(5):
        candidates = drawn(seed, **rules)
        positive, valid = candidates.masks()
        found = layout(candidates)
        assert found is not None
        assert found.negatives.tolist() == (valid & ~positive).sum(dim=1).tolist()
        listed_positive = torch.zeros_like(positive)
        listed_positive[found.positive_row, found.positive_column] = True
        assert torch.equal(listed_positive, positive)
        hidden = ~present(candidates)
        assert torch.equal(hidden, torch.zeros(C, dtype=torch.bool) if found.absent is None else found.absent)


def test_more_pairs_than_wanted_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = drawn(0)
    positive, _, _ = naive(candidates)
    assert positive_pairs(candidates, 3 * B * C) is not None
    assert positive_pairs(candidates, len(positive) // 2) is None
    found = positive_pairs(candidates, MANY)
    assert exceptions(candidates, found, 1) is None  # so many equal groups
    assert layout(candidates) is not None
    monkeypatch.setattr(statistics, "MOST", 0)
    assert layout(candidates) is None


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("count", "classes", "listed"), [(16, 4, True), (256, 10, False), (512, 128, True)])
def test_a_list_is_for_few_pairs(count: int, classes: int, listed: bool, symmetric: bool) -> None:
    ids = torch.arange(count) % classes
    candidates = Candidates(torch.randn(count, 2), ids, ids, self_index=torch.arange(count), symmetric=symmetric)
    assert (layout(candidates) is not None) == listed


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("labels", [[0] * 6 + [1, 2, 3, 4, 5, 6], list(range(12))])
def test_all_ranks_decide_alike(labels: list[int], groups: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether one lists its pairs, though one has many and the other few: else it would wait for what never comes."""
    monkeypatch.setattr(statistics, "MOST", 1)
    ids, everybody = torch.tensor(labels), torch.arange(12)
    for part in (slice(0, 6), slice(6, 12)):
        rules: dict[str, torch.Tensor] = {"excluded_groups": ids, "query_groups": ids[part]} if groups else {}
        its = (everybody if groups else ids)[part]
        candidates = Candidates(
            torch.randn(12, 2), its, everybody if groups else ids, self_index=everybody[part], symmetric=True, **rules
        )
        assert (layout(candidates) is None) == (labels[1] == 0)


def test_rules_of_each_query_have_no_layout() -> None:
    query_ids, vectors = torch.arange(3), torch.randn(4, 2)
    each = torch.randint(3, (3, 4))
    assert layout(Candidates(vectors, query_ids, ids=each)) is None
    assert layout(Candidates(vectors, query_ids, excluded_groups=each, query_groups=query_ids)) is None
    assert layout(Candidates(torch.randn(3, 4, 2), query_ids, ids=torch.arange(4))) is None


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 3), (3, 5), (9, 13), (100, 100)])
def test_every_exception_is_in_the_tile_it_lies_in(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = drawn(1)
    others = exceptions(candidates, positive_pairs(candidates, MANY), MANY)
    monkeypatch.setattr(plans, "ROWS", rows)
    monkeypatch.setattr(plans, "COLUMNS", columns)
    for plan in (Plan(B, C, others), Plan(B, C, others, rows, columns)):
        found = []
        for i in range(0, B, plan.rows):
            for j in range(0, C, plan.columns):
                out = plan.left_out(i, j)
                for row, column in [] if out is None else listed(Pairs(*out)):
                    assert row < min(rows, B - i)
                    assert column < min(columns, C - j)
                    found.append((i + row, j + column))
        assert sorted(found) == sorted(listed(others))


def test_of_positives_is_its_definition() -> None:
    scores = torch.tensor([1.0, 400.0, -2.0, 399.0, 0.5], dtype=torch.float64, requires_grad=True)
    row = torch.tensor([0, 2, 3, 2, 3])
    lse, mean, count = of_positives(scores, row, 5)
    assert count.tolist() == [1, 0, 2, 2, 0]
    for i in range(5):
        own = scores[row == i]
        if len(own):
            torch.testing.assert_close(lse[i], own.logsumexp(dim=0))
            torch.testing.assert_close(mean[i], own.mean())
        else:
            assert lse[i] == torch.finfo(scores.dtype).min
            assert mean[i] == 0
    expected = sum(scores[row == i].logsumexp(dim=0) + 2 * scores[row == i].mean() for i in (0, 2, 3))
    got = torch.where(count > 0, lse + 2 * mean, 0).sum()
    torch.testing.assert_close(*(torch.autograd.grad(x, scores)[0] for x in (got, expected)))
