"""Binary trees over a vocabulary: the path of every word from the root, for the hierarchical softmax.

N words, N - 1 inner nodes, L the length of the longest path.
"""

import heapq
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from contrast.errors import InputError
from contrast.samplers.contract import Values, as_array, check_weights


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


def huffman(counts: Values) -> HuffmanTree:
    """The tree of least mean path length under counts [N] (Huffman 1952), node by node that of word2vec.

    Inner nodes are numbered in the order in which they are made, so the root is N - 2. Of the two nodes merged, the
    one taken first has turn False. Among equal counts, inner nodes are taken before words, older inner nodes before
    newer ones, and later words before earlier ones.

    Raises InputError unless counts are a vector of at least 2 positive, finite numbers. (Zeros would allow paths of N
    nodes.)
    """
    values = check_weights(counts, "counts of a Huffman tree")
    count = len(values)
    if count < 2:
        raise InputError(f"a Huffman tree needs the counts of at least 2 words, got shape {list(values.shape)}")
    if not values.all():
        raise InputError(f"a Huffman tree needs positive counts, but word {values.argmin()} of {count} has 0")
    heap = [(weight, 1, -word) for word, weight in enumerate(values.tolist())]  # weight, whether it is a word, order
    heapq.heapify(heap)
    parent, turn = [-1] * (2 * count - 1), [False] * (2 * count - 1)
    for made in range(count, 2 * count - 1):
        first = heapq.heappop(heap)
        second = heapq.heapreplace(heap, (first[0] + heap[0][0], 0, made))
        parent[abs(first[2])] = parent[abs(second[2])] = made
        turn[abs(second[2])] = True
    return _tree(np.array(parent), np.array(turn))


def from_parents(parent: Values, turn: Values) -> HuffmanTree:
    """A given binary tree over N words, in the same form.

    Nodes 0..N-1 are the words, N..2N-2 the inner nodes, which `HuffmanTree.path` numbers from 0.

    parent  [2N - 1] int64, the inner node above each node; -1 at the root
    turn    [2N - 1] bool or 0 and 1: which child of its parent a node is; the root's is ignored

    `path` takes N x L numbers, however unbalanced the tree is. Raises InputError unless this is one tree: one root,
    and below every inner node one child for either turn.
    """
    parents, turns = as_array(parent, torch.int64), as_array(turn, torch.int64)
    _check_tree(parents, turns)
    return _tree(parents, turns.astype(bool))


def _tree(parent: np.ndarray, turn: np.ndarray) -> HuffmanTree:
    """Climbs from all words to the root at the same time, then writes each word's nodes from the root down."""
    count = (len(parent) + 1) // 2
    word = node = np.arange(count)
    length = np.zeros(count, dtype=np.int64)
    steps: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    while len(word):  # words that are not at the root yet, and the nodes that they have reached
        if len(steps) == count:  # more than any path of a tree
            raise InputError(f"{len(word)} of {count} words are not below the root, word {word[0]} first: a cycle")
        steps.append((word, parent[node] - count, turn[node]))
        length[word] += 1
        node = parent[node]
        below = parent[node] >= 0
        word, node = word[below], node[below]
    path = np.full((count, len(steps)), -1, dtype=np.int64)
    code = np.zeros((count, len(steps)), dtype=bool)
    for climbed, (word, above, side) in enumerate(steps, start=1):
        path[word, length[word] - climbed] = above
        code[word, length[word] - climbed] = side
    return HuffmanTree(torch.from_numpy(path), torch.from_numpy(code), torch.from_numpy(length))


def _check_tree(parent: np.ndarray, turn: np.ndarray) -> None:
    size, count = parent.size, (parent.size + 1) // 2
    if parent.ndim != 1 or parent.shape != turn.shape or size < 3 or size % 2 == 0:
        shapes = f"{list(parent.shape)} and {list(turn.shape)}"
        raise InputError(f"a tree over N >= 2 words has 2N - 1 parents and as many turns, got shapes {shapes}")
    roots = np.flatnonzero(parent == -1)
    if len(roots) != 1:
        raise InputError(f"a tree has 1 root (parent -1), but {len(roots)} of {size} nodes are roots")
    child = np.delete(np.arange(size), roots)
    inside = (parent[child] >= count) & (parent[child] < size) & (turn[child] >= 0) & (turn[child] <= 1)
    for node in child[~inside][:1]:
        expected = f"an inner node, {count}..{size - 1}, as its parent and 0 or 1 as its turn"
        raise InputError(f"node {node} needs {expected}, but has {parent[node]} and {turn[node]}")
    children = np.bincount(2 * (parent[child] - count) + turn[child], minlength=size - 1).reshape(-1, 2)
    for inner in np.flatnonzero((children != 1).any(axis=1))[:1]:
        left, right = children[inner]
        raise InputError(
            f"inner node {inner + count} must have 1 child of turn 0 and 1 of turn 1, has {left} and {right}"
        )
