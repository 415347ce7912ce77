"""Weighted-vote kNN against a loop in float64."""

import math

import pytest
import torch
from torch.overrides import TorchFunctionMode

from contrast.errors import InputError
from contrast.evaluation.knn import knn_predict, knn_score


def problem(n: int, m: int, f: int = 6, classes: int = 7, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Clusters that overlap: train [n, f], labels, test [m, f], labels."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, f, generator=random)
    labels = torch.arange(n + m) % classes
    x = centres[labels] + 0.8 * torch.randn(n + m, f, generator=random)
    order = torch.randperm(n + m, generator=random)
    x, labels = x[order], labels[order]
    return x[:n], labels[:n], x[n:], labels[n:]


def naive(train, labels, test, k, temperature, classes):
    """Votes of every class for every test row, in float64 loops."""
    votes = []
    for query in test.double():
        pairs = []
        for key, label in zip(train.double(), labels.tolist(), strict=True):
            pairs.append((float(query @ key) / float(query.norm() * key.norm()), label))
        row = [0.0] * classes
        for similarity, label in sorted(pairs, reverse=True)[:k]:
            row[label] += math.exp(similarity / temperature)
        votes.append(row)
    return votes


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (60, 0.02)])
@pytest.mark.parametrize(("test_block", "train_block"), [(1, 1), (7, 13), (64, 9), (512, 4096)])
def test_votes_rank_the_classes_as_in_the_definition(k, temperature, test_block, train_block):
    train, labels, test, test_labels = problem(60, 23)
    votes = naive(train, labels, test, k, temperature, classes=7)
    ranking = knn_predict(train, labels, test, k, temperature, test_block=test_block, train_block=train_block)
    truth = [sorted(range(7), key=lambda c: (-row[c], c))[:5] for row in votes]
    assert ranking.tolist() == truth
    score = knn_score(train, labels, test, test_labels, k, temperature)
    hits = [(label == row[0], label in row) for label, row in zip(test_labels.tolist(), truth, strict=True)]
    assert score.top1 == pytest.approx(sum(hit for hit, _ in hits) / 23)
    assert score.top5 == pytest.approx(sum(hit for _, hit in hits) / 23)
    assert score.top1 < score.top5 or k == 1


def test_more_neighbours_than_training_rows_means_all_of_them():
    train, labels, test, test_labels = problem(30, 10)
    assert knn_score(train, labels, test, test_labels, k=200) == knn_score(train, labels, test, test_labels, k=30)


def test_equal_votes_go_to_the_lower_class():
    train = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    ranking = knn_predict(train, torch.tensor([2, 1, 0]), torch.tensor([[1.0, 0.0]]), k=2)
    assert ranking.tolist() == [[1, 2, 0]]


def test_a_small_temperature_neither_overflows_nor_loses_the_nearest():
    train, labels, test, _ = problem(40, 12)
    nearest = knn_predict(train, labels, test, k=1)[:, 0]
    assert knn_predict(train, labels, test, k=40, temperature=1e-4)[:, 0].tolist() == nearest.tolist()


def test_the_number_of_threads_changes_nothing():
    train, labels, test, _ = problem(400, 90)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(knn_predict(train, labels, test, k=20, test_block=50))
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_half_precision_and_autocast_are_computed_in_float32():
    train, labels, test, _ = problem(200, 50)
    train, test = train.bfloat16(), test.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = knn_predict(train, labels, test, k=20)
    assert torch.equal(found, knn_predict(train.double(), labels, test.double(), k=20))


class Largest(TorchFunctionMode):
    """The number of elements of the largest tensor that a call returned."""

    elements = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return out


def test_the_whole_test_by_train_matrix_never_exists():
    train, labels, test, _ = problem(1000, 900, f=4)
    with Largest() as largest:
        blocks = knn_predict(train, labels, test, k=10, test_block=60, train_block=100)
    assert largest.elements == 60 * 100
    with Largest() as largest:
        whole = knn_predict(train, labels, test, k=10, test_block=900, train_block=1000)
    assert largest.elements == 900 * 1000
    assert torch.equal(blocks, whole)


def test_bad_input_is_refused_with_its_numbers():
    train, labels, test, test_labels = problem(30, 10)
    hidden = labels.clone()
    hidden[:4] = -1
    with pytest.raises(InputError, match="4 of 30 rows have no label"):
        knn_score(train, hidden, test, test_labels)
    broken = test.clone()
    broken[3, 1] = torch.nan
    with pytest.raises(InputError, match="1 of 10 rows are not finite"):
        knn_score(train, labels, broken, test_labels)
    with pytest.raises(InputError, match=r"k \(0\)"):
        knn_score(train, labels, test, test_labels, k=0)
    with pytest.raises(InputError, match=r"temperature \(0\)"):
        knn_score(train, labels, test, test_labels, temperature=0)
    with pytest.raises(InputError, match=r"\[10, 5\] do not fit training features \[N, 6\]"):
        knn_score(train, labels, test[:, :5], test_labels)
    with pytest.raises(InputError, match=r"\[30, 6\] and \[10\]"):
        knn_score(train, test_labels, test, test_labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.float32, "numpy"])
def test_labels_of_every_type_of_whole_numbers(dtype):
    train, labels, test, test_labels = problem(60, 23)
    given, test_given = (
        values.numpy().astype("uint16") if dtype == "numpy" else values.to(dtype) for values in (labels, test_labels)
    )
    assert torch.equal(knn_predict(train, given, test, k=5), knn_predict(train, labels, test, k=5))
    assert knn_score(train, given, test, test_given) == knn_score(train, labels, test, test_labels)


def test_labels_that_are_not_whole_are_refused():
    train, labels, test, test_labels = problem(30, 10)
    with pytest.raises(InputError, match="training set: labels must be whole numbers"):
        knn_predict(train, labels + 0.5, test)
    with pytest.raises(InputError, match="test set: labels must be whole numbers"):
        knn_score(train, labels, test, test_labels > 3)


def test_no_row_without_a_label_votes_or_is_counted():
    train, labels, test, test_labels = problem(30, 10)
    with pytest.raises(InputError, match="1 of 30 rows have no label"):
        knn_predict(train, labels.index_fill(0, torch.tensor([7]), -1), test)
    with pytest.raises(InputError, match="1 of 10 rows have no label"):
        knn_score(train, labels, test, test_labels.index_fill(0, torch.tensor([7]), -1))
