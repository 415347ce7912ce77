"""Huffman trees against word2vec's algorithm and the definition; given trees; the probabilities that they induce."""

import heapq
import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from contrast.errors import InputError
from contrast.samplers import HuffmanTree, from_parents, huffman

COUNTS = [15, 8, 6, 5, 4, 2]
# a balanced tree over 4 words: nodes 4 and 5 below the root 6
PARENT, TURN = [4, 4, 5, 5, 6, 6, -1], [0, 1, 1, 0, 0, 1, 0]


def codes(tree: HuffmanTree) -> list[tuple[list[int], list[int]]]:
    """(code, inner nodes) of every word."""
    rows = zip(tree.turn.int().tolist(), tree.path.tolist(), tree.length.tolist(), strict=True)
    return [(turn[:length], path[:length]) for turn, path, length in rows]


def word2vec(counts: list[int]) -> list[tuple[list[int], list[int]]]:
    """(code, inner nodes) of every word by word2vec.c's CreateBinaryTree; counts fall."""
    size = len(counts)
    count = counts + [10**15] * size
    binary, parent = [0] * (2 * size), [0] * (2 * size)
    pos1, pos2 = size - 1, size
    for a in range(size - 1):
        least = []
        for _ in range(2):
            if pos1 >= 0 and count[pos1] < count[pos2]:
                least.append(pos1)
                pos1 -= 1
            else:
                least.append(pos2)
                pos2 += 1
        count[size + a] = count[least[0]] + count[least[1]]
        parent[least[0]] = parent[least[1]] = size + a
        binary[least[1]] = 1
    found = []
    for word in range(size):
        code, nodes, node = [], [], word
        while node != 2 * size - 2:
            code.append(binary[node])
            nodes.append(parent[node] - size)
            node = parent[node]
        found.append((code[::-1], nodes[::-1]))
    return found


def least_weighted_length(counts: list[float]) -> float:
    """Sum of counts times depth in an optimal tree: every merge adds one level below it."""
    heap, total = list(counts), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


def log_probabilities(tree: HuffmanTree, scores: Tensor) -> Tensor:
    """log of P(w) = product over the path of sigmoid((1 - 2 code) x_n), in a loop."""
    found = []
    for code, nodes in codes(tree):
        terms = [torch.sigmoid((1 - 2 * bit) * scores[node]).log() for bit, node in zip(code, nodes, strict=True)]
        found.append(torch.stack(terms).sum())
    return torch.stack(found)


def random_counts(seed: int) -> list[int]:
    rng = random.Random(seed)
    size, largest = rng.randint(2, 60), rng.choice([1, 3, 20, 10**6])  # small numbers: many ties
    return [rng.randint(1, largest) for _ in range(size)]


def test_the_tree_by_hand() -> None:
    tree = huffman(COUNTS)
    assert codes(tree) == [
        ([0], [4]),
        ([1, 1, 1], [4, 3, 2]),
        ([1, 1, 0], [4, 3, 2]),
        ([1, 0, 0], [4, 3, 1]),
        ([1, 0, 1, 1], [4, 3, 1, 0]),
        ([1, 0, 1, 0], [4, 3, 1, 0]),
    ]
    weighted = sum(count * length for count, length in zip(COUNTS, tree.length.tolist(), strict=True))
    entropy = sum(count * math.log2(sum(COUNTS) / count) for count in COUNTS)
    assert weighted == 96
    assert entropy == pytest.approx(93.15434938260297)
    assert entropy <= weighted < entropy + sum(COUNTS)


def test_shapes_types_and_padding() -> None:
    tree = huffman(COUNTS)
    assert (tree.path.shape, tree.turn.shape, tree.length.shape) == ((6, 4), (6, 4), (6,))
    assert (tree.path.dtype, tree.turn.dtype, tree.length.dtype) == (torch.int64, torch.bool, torch.int64)
    beyond = torch.arange(4) >= tree.length[:, None]
    assert torch.equal(tree.path == -1, beyond)
    assert not tree.turn[beyond].any()


def test_probabilities_by_hand() -> None:
    # P(w) = product of sigmoid((1 - 2 code) x_n)
    scores = torch.tensor([0.3, -0.5, 0.8, 0.1, -1.2], dtype=torch.float64)
    log_p = log_probabilities(huffman(COUNTS), scores)
    expected = [0.231475, 0.113180, 0.251886, 0.152322, 0.106873, 0.144264]
    assert log_p.exp().tolist() == pytest.approx(expected, abs=1e-6)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert -log_p[3].item() == pytest.approx(1.881756, abs=1e-6)


@pytest.mark.parametrize("seed", range(40))
def test_the_tree_is_word2vecs_and_optimal(seed: int) -> None:
    counts = random_counts(seed)
    falling = sorted(counts, reverse=True)
    assert codes(huffman(falling)) == word2vec(falling)

    tree = huffman(counts)
    order = sorted(range(len(counts)), key=lambda word: -counts[word])
    assert [codes(tree)[word] for word in order] == word2vec(falling)
    weighted = sum(count * length for count, length in zip(counts, tree.length.tolist(), strict=True))
    assert weighted == least_weighted_length(counts)
    assert sum(2.0**-length for length in tree.length.tolist()) == 1  # Kraft


@pytest.mark.parametrize("seed", range(10))
def test_codes_are_free_of_prefixes_and_nodes_have_two_sides(seed: int) -> None:
    tree = huffman(random_counts(seed))
    words = sorted("".join(map(str, code)) for code, _ in codes(tree))
    assert not any(after.startswith(before) for before, after in pairwise(words))
    root = len(words) - 2
    assert set(tree.path.unique().tolist()) - {-1} == set(range(root + 1))
    assert (tree.path[:, 0] == root).all()
    for node in range(root + 1):
        assert set(tree.turn[tree.path == node].tolist()) == {False, True}


@pytest.mark.parametrize("seed", range(10))
def test_probabilities_sum_to_one_whatever_the_scores(seed: int) -> None:
    counts = random_counts(seed)
    generator = torch.Generator().manual_seed(seed)
    scores = 5 * torch.randn(len(counts) - 1, generator=generator, dtype=torch.float64)
    assert log_probabilities(huffman(counts), scores).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_two_words_and_deep_trees() -> None:
    assert codes(huffman([3, 3])) == [([1], [0]), ([0], [0])]
    assert codes(huffman([1, 2])) == [([0], [0]), ([1], [0])]
    fibonacci = [1, 1]
    while len(fibonacci) < 60:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    assert huffman(fibonacci).length.max() == 59
    assert huffman([1e300, 1, 1e-300]).length.tolist() == [1, 2, 2]


def test_counts_come_as_a_list_an_array_or_a_tensor() -> None:
    expected = codes(huffman(COUNTS))
    assert codes(huffman(np.array(COUNTS))) == expected
    assert codes(huffman(torch.tensor(COUNTS))) == expected
    assert codes(huffman(np.array(COUNTS) / 32)) == expected
    assert codes(huffman(np.array(COUNTS[::-1])[::-1])) == expected  # a negative stride


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([], r"at least 1 class, got shape \[0\]"),
        ([4], r"at least 2 words, got shape \[1\]"),
        ([[1, 2], [3, 4]], r"got shape \[2, 2\]"),
        ([3, 0, 1], "word 1 of 3 has 0"),
        ([3, 1, -2], r"class 2 of 3 has -2\.0"),
        ([math.nan, 1], "class 0 of 2 has nan"),
        ([1, math.inf], "class 1 of 2 has inf"),
    ],
)
def test_bad_counts(counts: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        huffman(counts)


# ---- given trees


def test_a_given_tree() -> None:
    tree = from_parents(PARENT, TURN)
    reversed_arrays = (np.array(each[::-1])[::-1] for each in (PARENT, TURN))
    assert codes(from_parents(*reversed_arrays)) == codes(tree)
    assert codes(tree) == [([0, 0], [2, 0]), ([0, 1], [2, 0]), ([1, 1], [2, 1]), ([1, 0], [2, 1])]
    # the root may have any number, and a tree any shape: 2 | (0 | (3 | 1)) with the root at node 4
    tree = from_parents(torch.tensor([5, 6, 4, 6, -1, 4, 5]), torch.tensor([0, 1, 0, 0, 1, 1, 1], dtype=torch.bool))
    assert codes(tree) == [([1, 0], [0, 1]), ([1, 1, 1], [0, 1, 2]), ([0], [0]), ([1, 1, 0], [0, 1, 2])]
    assert log_probabilities(tree, torch.tensor([0.7, -2.0, 0.1])).exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("seed", range(10))
def test_a_huffman_tree_given_again(seed: int) -> None:
    tree = huffman(random_counts(seed))
    size = len(tree.length)
    parent, turn = [-1] * (2 * size - 1), [0] * (2 * size - 1)
    for word, (code, nodes) in enumerate(codes(tree)):
        below = [node + size for node in nodes[1:]] + [word]
        for node, above, bit in zip(below, nodes, code, strict=True):
            parent[node], turn[node] = above + size, bit
    again = from_parents(parent, turn)
    assert all(torch.equal(ours, given) for ours, given in zip(again, tree, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parent": {6: 4}}, "0 of 7 nodes are roots"),
        ({"parent": {5: -1}}, "2 of 7 nodes are roots"),
        ({"parent": {0: 1}}, r"node 0 needs an inner node, 4\.\.6, as its parent .* has 1 and 0"),
        ({"parent": {3: 7}}, "node 3 needs .* has 7 and 0"),
        ({"parent": {3: -2}}, "node 3 needs .* has -2 and 0"),
        ({"turn": {2: 2}}, "node 2 needs .* 0 or 1 as its turn, but has 5 and 2"),
        ({"turn": {1: 0}}, "inner node 4 must have 1 child of turn 0 and 1 of turn 1, has 2 and 0"),
        ({"parent": {1: 5}}, "inner node 4 .* has 1 and 0"),
        ({"parent": {5: 5, 2: 6}, "turn": {5: 1, 2: 1}}, "1 of 4 words are not below the root, word 3 first"),
    ],
)
def test_what_is_no_tree_is_refused(changes: dict, message: str) -> None:
    parent, turn = list(PARENT), list(TURN)
    for node, value in changes.get("parent", {}).items():
        parent[node] = value
    for node, value in changes.get("turn", {}).items():
        turn[node] = value
    with pytest.raises(InputError, match=message):
        from_parents(parent, turn)


@pytest.mark.parametrize(
    ("parent", "turn"), [([], []), ([-1], [0]), (PARENT[:-1], TURN[:-1]), (PARENT, TURN[:-2]), ([PARENT], [TURN])]
)
def test_lists_that_fit_no_tree_are_refused(parent: list, turn: list) -> None:
    with pytest.raises(InputError, match="2N - 1 parents and as many turns, got shapes"):
        from_parents(parent, turn)
