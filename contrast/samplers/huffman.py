"""Binary trees over a vocabulary: the path of every word from the root, for the hierarchical softmax.

N words, N - 1 inner nodes, L the longest path.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from contrast.errors import InputError


class HuffmanTree(NamedTuple):
    """Inner nodes and turns from the root down to every word.

    path    [N, L] int64, inner nodes 0..N-2; -1 beyond the word's length
    turn    [N, L] bool, the word's code: which child is taken at that node; False beyond the word's length
    length  [N] int64

    With x_n the score of a query at inner node n, word2vec's convention is (Mikolov et al. 2013, eq. 3)

        P(w) = product over the path of sigmoid((1 - 2 turn) x_n),

    which sums to 1 over the words (Morin & Bengio 2005).
    """

    path: Tensor
    turn: Tensor
    length: Tensor


def huffman(counts: Tensor | np.ndarray | Sequence[float]) -> HuffmanTree:
    """The tree of least mean path length under counts [N] (Huffman 1952), node by node that of word2vec.

    Inner nodes are numbered as they are made, so the root is N - 2; of the two nodes merged, the one taken first
    turns False. Among equals, an inner node is taken before a word, the older inner node first, and the later word
    first. Two queues, words in rising order and inner nodes as they are made, give both in linear time after a sort
    (van Leeuwen 1976).

    Raises InputError unless counts are a vector of at least 2 positive, finite numbers. (Zeros would allow paths of N
    nodes.)
    """
    values = torch.as_tensor(counts, dtype=torch.float64, device="cpu").numpy()
    if values.ndim != 1 or len(values) < 2:
        raise InputError(f"a Huffman tree needs the counts of at least 2 words, got shape {list(values.shape)}")
    bad = np.flatnonzero(~((values > 0) & np.isfinite(values)))
    if len(bad):
        raise InputError(
            f"a Huffman tree needs positive, finite counts, but word {bad[0]} of {len(values)} has {values[bad[0]]}"
        )
    words = np.argsort(-values, kind="stable")[::-1]  # [N], rising counts
    parent, turn = _merge(values[words])
    parent[words], turn[words] = parent[: len(words)].copy(), turn[: len(words)].copy()
    return _tree(parent, turn)


def from_parents(parent: Tensor | np.ndarray | Sequence[int], turn: Tensor | np.ndarray | Sequence[int]) -> HuffmanTree:
    """A given binary tree over N words, as the same structure.

    Nodes 0..N-1 are the words, N..2N-2 the inner nodes, which `HuffmanTree.path` counts from 0.

    parent  [2N - 1] int64, the inner node above each node; -1 at the root
    turn    [2N - 1] bool or 0 and 1: which child of its parent a node is; that of the root is not read

    `path` takes N x L numbers, however unbalanced the tree is. Raises InputError unless this is one tree: one root,
    and below every inner node one child for either turn.
    """
    up = torch.as_tensor(parent, dtype=torch.int64, device="cpu").numpy()
    side = torch.as_tensor(turn, dtype=torch.int64, device="cpu").numpy()
    _check(up, side)
    return _tree(up, side.astype(bool))


def _merge(rising: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`parent [2N - 1]`, `turn [2N - 1]` of the Huffman tree of counts [N] in rising order."""
    count = len(rising)
    words, nodes = [*rising.tolist(), np.inf], [np.inf] * count  # inf: used up, or not made yet
    first, second = [0] * (count - 1), [0] * (count - 1)
    word = node = 0
    for made in range(count - 1):
        weight = 0.0
        for child in (first, second):
            if words[word] < nodes[node]:
                child[made] = word
                weight += words[word]
                word += 1
            else:
                child[made] = count + node
                weight += nodes[node]
                node += 1
        nodes[made] = weight
    parent, turn = np.full(2 * count - 1, -1, dtype=np.int64), np.zeros(2 * count - 1, dtype=bool)
    parent[first] = parent[second] = np.arange(count, 2 * count - 1)
    turn[second] = True
    return parent, turn


def _tree(parent: np.ndarray, turn: np.ndarray) -> HuffmanTree:
    """Paths from the root, one level of all words at a time: up once to count the levels, up again to write them."""
    count = (len(parent) + 1) // 2
    length = np.zeros(count, dtype=np.int64)
    for word, _ in _climb(parent):
        length[word] += 1
    path = np.full((count, length.max()), -1, dtype=np.int64)
    code = np.zeros((count, length.max()), dtype=bool)
    for step, (word, node) in enumerate(_climb(parent), start=1):
        level = length[word] - step
        path[word, level] = parent[node] - count
        code[word, level] = turn[node]
    return HuffmanTree(torch.from_numpy(path), torch.from_numpy(code), torch.from_numpy(length))


def _climb(parent: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Words that are not at the root yet and the nodes they have reached, step by step; first the words themselves."""
    count = (len(parent) + 1) // 2
    word = node = np.arange(count)
    while True:
        below = parent[node] >= 0
        if not below.all():
            word, node = word[below], node[below]
        if not len(word):
            return
        yield word, node
        node = parent[node]


def _check(parent: np.ndarray, turn: np.ndarray) -> None:
    if parent.ndim != 1 or parent.shape != turn.shape or len(parent) < 3 or len(parent) % 2 == 0:
        shapes = f"{list(parent.shape)} and {list(turn.shape)}"
        raise InputError(f"a tree over N >= 2 words has 2N - 1 parents and as many turns, got shapes {shapes}")
    count = (len(parent) + 1) // 2
    roots = np.flatnonzero(parent == -1)
    if len(roots) != 1:
        raise InputError(f"a tree has 1 root (parent -1), but {len(roots)} of {len(parent)} nodes are roots")
    child = np.delete(np.arange(len(parent)), roots)
    for node in child[(parent[child] < count) | (parent[child] >= len(parent))][:1]:
        raise InputError(
            f"the parent of node {node} must be an inner node, {count}..{len(parent) - 1}, but is {parent[node]}"
        )
    for node in child[(turn[child] < 0) | (turn[child] > 1)][:1]:
        raise InputError(f"the turn of node {node} must be 0 or 1, but is {turn[node]}")
    children = np.zeros((count - 1, 2), dtype=np.int64)
    np.add.at(children, (parent[child] - count, turn[child]), 1)
    for inner in np.flatnonzero((children != 1).any(axis=1))[:1]:
        left, right = children[inner]
        raise InputError(
            f"inner node {inner + count} must have 1 child of turn 0 and 1 of turn 1, has {left} and {right}"
        )
    above = np.where(parent == -1, roots, parent)
    for _ in range(len(parent).bit_length()):  # twice as far up every time: past the root of any tree
        above = above[above]
    lost = np.flatnonzero(above != roots)
    if len(lost):
        raise InputError(f"{len(lost)} of {len(parent)} nodes are not below the root, node {lost[0]} first: a cycle")
