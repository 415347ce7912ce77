"""Hierarchical softmax: the logistic loss over a path is -log P, and P sums to 1 over the vocabulary."""

import pytest
import torch
from torch import Tensor

from contrast.errors import InputError
from contrast.heads import NCE
from contrast.negatives import Tree
from contrast.samplers import HuffmanTree, from_parents, huffman

COUNTS = {
    "two": [3, 3],
    "three": [1, 5, 2],
    "seven": [15, 8, 6, 5, 4, 2, 1],
    "seven alike": [1] * 7,
    "seven in a row": [1, 1, 2, 4, 8, 16, 32],  # one path of six nodes
}
# ((0, 1), (2, 3)) below the root 6
GIVEN = from_parents([4, 4, 5, 5, 6, 6, -1], [0, 1, 1, 0, 0, 1, 0])
TREES = {name: huffman(counts) for name, counts in COUNTS.items()} | {"given": GIVEN}


def source(tree: HuffmanTree, dim: int = 4) -> Tree:
    made = Tree(tree, dim).double()
    torch.manual_seed(0)
    torch.nn.init.normal_(made.vectors)
    return made


def naive_log_prob(vectors: Tensor, tree: HuffmanTree, query: Tensor, word: int, scale: float = 1.0) -> Tensor:
    """Mikolov et al. 2013, eq. 3, in a loop over the path."""
    p = query.new_ones(())
    for node, turn in zip(tree.path[word].tolist(), tree.turn[word].tolist(), strict=True):
        if node >= 0:
            p = p * torch.sigmoid((-1 if turn else 1) * (vectors[node] @ query) / scale)
    return p.log()


@pytest.mark.parametrize("name", TREES)
def test_the_loss_is_minus_log_p_with_gradients(name: str) -> None:
    tree = TREES[name]
    words, negatives = len(tree.path), source(tree)
    query = torch.randn(2, words, 4, dtype=torch.float64, requires_grad=True)
    ids = torch.arange(words).flip(0)
    ((asking, candidates),) = negatives(query, None, ids)
    losses, counted = NCE(0.7, cosine=False).double()(asking, candidates)
    assert counted.all()
    flat = query.flatten(0, 1)
    expected = [
        -naive_log_prob(negatives.vectors, tree, q, w, 0.7) for q, w in zip(flat, ids.repeat(2).tolist(), strict=True)
    ]
    torch.testing.assert_close(losses, torch.stack(expected))
    log_p = negatives.log_prob(flat, 0.7).gather(1, ids.repeat(2)[:, None]).squeeze(1)
    torch.testing.assert_close(losses, -log_p)
    inputs = (query, negatives.vectors)
    wanted = torch.autograd.grad(torch.stack(expected).mean(), inputs)
    for way in (losses.mean(), -log_p.mean()):
        for got, other in zip(torch.autograd.grad(way, inputs), wanted, strict=True):
            torch.testing.assert_close(got, other)


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("cosine", [False, True])
def test_the_probabilities_sum_to_one(name: str, cosine: bool) -> None:
    negatives = source(TREES[name])
    query = 3 * torch.randn(5, 4, dtype=torch.float64)
    total = negatives.log_prob(query, 0.3, cosine).exp().sum(dim=1)
    torch.testing.assert_close(total, torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-12)
    negatives.vectors.data.zero_()  # as it starts: every turn is a toss
    halves = 0.5 ** TREES[name].length.double()
    torch.testing.assert_close(negatives.log_prob(query).exp(), halves.expand(5, -1))


def test_the_loss_with_cosines() -> None:
    negatives = source(TREES["seven"])
    query, ids = torch.randn(1, 7, 4, dtype=torch.float64), torch.arange(7)
    losses, _ = NCE(0.2, cosine=True).double()(*negatives(query, None, ids)[0])
    torch.testing.assert_close(losses, -negatives.log_prob(query[0], 0.2, cosine=True).diagonal())


def test_by_hand() -> None:
    """Counts 15, 8, 6, 5, 4, 2 and the scores below at the inner nodes: P(w), and the loss of word 3."""
    negatives = Tree(torch.tensor([15, 8, 6, 5, 4, 2]), 1).double()
    negatives.vectors.data[:, 0] = torch.tensor([0.3, -0.5, 0.8, 0.1, -1.2])
    query = torch.ones(1, 6, 1, dtype=torch.float64)
    losses, _ = NCE(1.0, cosine=False).double()(*negatives(query, None, torch.arange(6))[0])
    p = [0.231475, 0.113180, 0.251886, 0.152322, 0.106873, 0.144264]
    assert losses.neg().exp().tolist() == pytest.approx(p, abs=5e-7)
    assert losses[3].item() == pytest.approx(1.881756, abs=5e-7)


def test_only_the_nodes_of_the_path_get_a_gradient() -> None:
    negatives = source(TREES["seven"])
    losses, _ = NCE(1.0, cosine=False).double()(*negatives(torch.ones(1, 1, 4).double(), None, torch.tensor([0]))[0])
    losses.sum().backward()
    path = set(TREES["seven"].path[0].tolist()) - {-1}
    assert {node for node in range(6) if negatives.vectors.grad[node].abs().max() > 0} == path


def test_the_tree_is_in_the_state_dict() -> None:
    one, other = source(TREES["seven"]), Tree(torch.tensor(COUNTS["seven alike"]), 4).double()
    assert set(one.state_dict()) == {"path", "sign", "vectors"}
    with pytest.raises(RuntimeError, match="size mismatch"):  # another tree, of another depth
        other.load_state_dict(one.state_dict())
    again = Tree(GIVEN, 4).double()
    flipped = Tree(GIVEN._replace(turn=~GIVEN.turn), 4).double()
    again.load_state_dict(flipped.state_dict())
    assert torch.equal(again.sign, flipped.sign)


def test_errors_carry_the_numbers() -> None:
    with pytest.raises(InputError, match="at least 1 dimension, got 0"):
        Tree(torch.tensor([1, 2]), 0)
    with pytest.raises(InputError, match="at least 2 words"):
        Tree(torch.tensor([1]), 3)
    with pytest.raises(InputError, match="positive counts, but word 1 of 3 has 0"):
        Tree(torch.tensor([1, 0, 2]), 3)
