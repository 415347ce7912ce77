"""The lists behind the tiles, pair by pair: which are positive, which are no negatives, and in which tile they lie."""

import pytest
import torch

from contrast.candidates import ABSENT, Candidates
from contrast.losses import plan as plans
from contrast.losses.plan import PairLists, Pairs, Tiles, excluded_pairs, is_present, pair_lists, positive_pairs
from contrast.losses.softmax import of_positives

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
        others = excluded_pairs(candidates, found, MANY)
        assert sorted(listed(found)) == sorted(positive)  # each once
        assert [row for row, _ in listed(found)] == sorted(row for row, _ in positive)
        assert sorted(listed(others)) == sorted(excepted)
        assert set(is_present(candidates).nonzero().flatten().tolist()) == there


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_a_layout_counts_what_the_masks_count(rules: dict[str, bool]) -> None:
    for seed in range(5):
        candidates = drawn(seed, **rules)
        positive, valid = candidates.masks()
        found = pair_lists(candidates)
        assert found is not None
        assert found.num_negatives.tolist() == (valid & ~positive).sum(dim=1).tolist()
        listed_positive = torch.zeros_like(positive)
        listed_positive[found.positive.row, found.positive.column] = True
        assert torch.equal(listed_positive, positive)
        hidden = ~is_present(candidates)
        assert torch.equal(hidden, torch.zeros(C, dtype=torch.bool) if found.absent is None else found.absent)


def test_more_pairs_than_wanted_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = drawn(0)
    positive, _, _ = naive(candidates)
    assert positive_pairs(candidates, 3 * B * C) is not None
    assert positive_pairs(candidates, len(positive) // 2) is None
    found = positive_pairs(candidates, MANY)
    assert excluded_pairs(candidates, found, 1) is None  # so many equal groups
    assert pair_lists(candidates) is not None
    monkeypatch.setattr(plans, "MAX_PAIRS_PER_ROW", 0)
    assert pair_lists(candidates) is None


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("count", "classes", "listed"), [(16, 4, True), (256, 10, False), (512, 128, True)])
def test_a_list_is_for_few_pairs(count: int, classes: int, listed: bool, symmetric: bool) -> None:
    ids = torch.arange(count) % classes
    candidates = Candidates(torch.randn(count, 2), ids, ids, self_index=torch.arange(count), symmetric=symmetric)
    assert (pair_lists(candidates) is not None) == listed


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("labels", [[0] * 6 + [1, 2, 3, 4, 5, 6], list(range(12))])
def test_all_ranks_decide_alike(labels: list[int], groups: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether one lists its pairs, though one has many and the other few: else it would wait for what never comes."""
    monkeypatch.setattr(plans, "MAX_PAIRS_PER_ROW", 1)
    ids, everybody = torch.tensor(labels), torch.arange(12)
    for part in (slice(0, 6), slice(6, 12)):
        rules: dict[str, torch.Tensor] = {"excluded_groups": ids, "query_groups": ids[part]} if groups else {}
        its = (everybody if groups else ids)[part]
        candidates = Candidates(
            torch.randn(12, 2), its, everybody if groups else ids, self_index=everybody[part], symmetric=True, **rules
        )
        assert (pair_lists(candidates) is None) == (labels[1] == 0)


def test_rules_of_each_query_have_no_layout() -> None:
    query_ids, vectors = torch.arange(3), torch.randn(4, 2)
    each = torch.randint(3, (3, 4))
    assert pair_lists(Candidates(vectors, query_ids, ids=each)) is None
    assert pair_lists(Candidates(vectors, query_ids, excluded_groups=each, query_groups=query_ids)) is None
    assert pair_lists(Candidates(torch.randn(3, 4, 2), query_ids, ids=torch.arange(4))) is None


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 3), (3, 5), (9, 13), (100, 100)])
def test_every_exception_is_in_the_tile_it_lies_in(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = drawn(1)
    others = excluded_pairs(candidates, positive_pairs(candidates, MANY), MANY)
    monkeypatch.setattr(plans, "TILE_ROWS", rows)
    monkeypatch.setattr(plans, "TILE_COLUMNS", columns)
    for tiles in (Tiles(B, C, others), Tiles(B, C, others, rows, columns)):
        found = []
        for rows_of, columns_of, excluded in tiles.parts:
            width = columns_of.stop - columns_of.start
            for place in [] if excluded is None else excluded.tolist():
                assert place // width < rows_of.stop - rows_of.start
                found.append((rows_of.start + place // width, columns_of.start + place % width))
        assert sorted(found) == sorted(listed(others))


@pytest.mark.parametrize("with_own", [False, True])
def test_of_positives_is_its_definition(with_own: bool) -> None:
    scores = torch.tensor([1.0, 400.0, -2.0, 399.0, 0.5], dtype=torch.float64, requires_grad=True)
    row = torch.tensor([0, 2, 3, 2, 3])
    own = torch.tensor([[3.0], [-1.0], [0.0], [2.0], [1.0]], dtype=torch.float64) if with_own else None
    count = torch.bincount(row, minlength=5)
    lists = PairLists(Pairs(row, row), Tiles(5, 5, None), None, count, count, False)
    lse, mean = of_positives(scores, own, lists)
    expected_lse, expected_mean = [], []
    for i in range(5):
        each = torch.cat([scores[row == i], own[i]]) if own is not None else scores[row == i]
        expected_lse.append(each.logsumexp(dim=0) if len(each) else scores.new_tensor(torch.finfo(scores.dtype).min))
        expected_mean.append(each.mean() if len(each) else scores.new_zeros(()))
    torch.testing.assert_close(lse, torch.stack(expected_lse))
    torch.testing.assert_close(mean, torch.stack(expected_mean))
    some = count > 0
    got = torch.where(some, lse + 2 * mean, 0).sum()
    expected = sum(expected_lse[i] + 2 * expected_mean[i] for i in (0, 2, 3))
    torch.testing.assert_close(*(torch.autograd.grad(x, scores)[0] for x in (got, expected)))
