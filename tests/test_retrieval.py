"""Recall at k against its definition in loops, under ties, in blocks; ids of texts and of images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from contrast.data.images.image_set import ImageFiles, Images
from contrast.errors import InputError
from contrast.evaluation import distinct, image_ids, recall, text_ids


def problem(m: int, n: int, ids: int, seed: int = 0, d: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries [m, d] near the keys [n, d] of their id."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(ids, d, generator=random)
    query_ids, key_ids = torch.arange(m) % ids, torch.arange(n) % ids
    query = centres[query_ids] + torch.randn(m, d, generator=random)
    key = centres[key_ids] + torch.randn(n, d, generator=random)
    at = torch.randperm(n, generator=random)
    return query, key[at], query_ids, key_ids[at]


def naive(query: Tensor, key: Tensor, query_ids: Tensor, key_ids: Tensor, k: int) -> float:
    """Among k keys in the order of their cosines; of equal ones those of other ids come first."""
    answered = 0
    for row, label in zip(query.double(), query_ids.tolist(), strict=True):
        ranked = []
        for other, theirs in zip(key.double(), key_ids.tolist(), strict=True):
            cosine = float(row @ other) / max(float(row.norm() * other.norm()), 1e-300)
            ranked.append((-round(cosine, 12), theirs == label))
        answered += any(own for _, own in sorted(ranked)[:k])
    return answered / len(query)


@pytest.mark.parametrize(("m", "n", "ids"), [(37, 23, 23), (20, 60, 7), (11, 10, 10), (1, 1, 1)])
@pytest.mark.parametrize("block", [1, 7, 512])
def test_recall_is_its_definition(m: int, n: int, ids: int, block: int):
    given = problem(m, n, ids)
    found = recall(*given, k=(1, 2, 5, 10, 100), block=block)
    assert found == {k: pytest.approx(naive(*given, k)) for k in (1, 2, 5, 10, 100)}
    assert found[1] <= found[2] <= found[5] <= found[10] <= found[100] == 1
    if n > 20:
        assert 0 < found[1] < found[10]


def test_known_figures():
    key = torch.eye(4)
    query = torch.tensor([[3.0, 2, 1, 0], [3, 2, 1, 0], [3, 2, 1, 0], [3, 2, 1, 0]])
    assert recall(query, key, torch.arange(4), torch.arange(4), k=(1, 2, 3, 4)) == {1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0}
    assert recall(7 * key, 0.01 * key, torch.arange(4), torch.arange(4), k=[1]) == {1: 1.0}
    assert recall(-key, key, torch.arange(4), torch.arange(4), k=[3]) == {3: 0.0}


@pytest.mark.parametrize("block", [3, 512])
@pytest.mark.parametrize("width", [3, 64, 513])
def test_equal_embeddings_answer_nothing_until_every_other_key_fits(block: int, width: int):
    row = torch.randn(width, generator=torch.Generator().manual_seed(width))
    ids = torch.arange(40) // 2  # each of twenty ids has two keys
    for embedding in (row.expand(40, -1), torch.zeros(40, width), row.expand(40, -1) * torch.rand(40, 1)):
        found = recall(embedding, embedding, ids, ids, k=(1, 10, 38, 39), block=block)
        assert found == {1: 0.0, 10: 0.0, 38: 0.0, 39: 1.0}


@pytest.mark.parametrize("block", [2, 5, 512])
def test_ties_count_against_whatever_the_order(block: int):
    random = torch.Generator().manual_seed(3)
    key = torch.randint(-1, 2, (30, 3), generator=random).float()
    query = torch.randint(-1, 2, (25, 3), generator=random).float()
    query_ids, key_ids = torch.arange(25) % 6, torch.arange(30) % 6
    wanted = {k: pytest.approx(naive(query, key, query_ids, key_ids, k)) for k in (1, 3, 8)}
    assert recall(query, key, query_ids, key_ids, k=(1, 3, 8), block=block) == wanted
    for seed in range(3):
        at = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
        assert recall(query, key[at], query_ids, key_ids[at], k=(1, 3, 8), block=block) == wanted


class Largest(TorchFunctionMode):
    """The number of elements of the largest tensor that a call returned."""

    elements = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return out


def test_the_whole_matrix_never_exists():
    given = problem(900, 1000, 50)
    with Largest() as largest:
        found = recall(*given, block=80)
    assert largest.elements == 80 * 80
    assert found == recall(*given, block=2000)


def test_half_precision_under_autocast_is_ranked_in_float64():
    query, key, query_ids, key_ids = problem(60, 50, 50)
    query, key = query.bfloat16(), key.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = recall(query, key, query_ids, key_ids)
    assert found == {k: pytest.approx(naive(query, key, query_ids, key_ids, k)) for k in (1, 5, 10)}


def test_bad_input_is_refused_with_its_numbers():
    query, key, query_ids, key_ids = problem(6, 8, 8)
    with pytest.raises(InputError, match=r"\[6, 4\] and \[8, 5\]"):
        recall(query[:, :4], key, query_ids, key_ids)
    with pytest.raises(InputError, match=r"\[0, 5\] and \[8, 5\]"):
        recall(query[:0], key, query_ids[:0], key_ids)
    with pytest.raises(InputError, match=r"6 queries and 8 keys have ids \[5\] and \[8\]"):
        recall(query, key, query_ids[:5], key_ids)
    with pytest.raises(InputError, match="2 of 6 queries have an id that no key has"):
        recall(query, key, torch.tensor([0, 1, 2, 3, 8, 9]), key_ids)
    broken = key.clone()
    broken[2, 1] = torch.nan
    with pytest.raises(InputError, match="1 of 8 keys are not finite"):
        recall(query, broken, query_ids, key_ids)
    for options in ({"k": (0, 1)}, {"k": ()}, {"block": 0}):
        with pytest.raises(InputError, match="must be 1 or more"):
            recall(query, key, query_ids, key_ids, **options)


def test_equal_texts_have_equal_ids():
    text = torch.tensor([[3, 4, 0], [1, 0, 0], [3, 4, 0], [3, 0, 4], [1, 0, 0]])
    ids = text_ids(text)
    for i in range(5):
        for j in range(5):
            assert (ids[i] == ids[j]) == torch.equal(text[i], text[j])
    assert sorted(set(ids.tolist())) == [0, 1, 2]
    assert distinct(ids).tolist() == [0, 1, 3]
    assert distinct(torch.tensor([7])).tolist() == [0]


def test_equal_images_have_equal_ids():
    values = torch.tensor([5, 1, 5, 2], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 2, 3).contiguous()
    labels = torch.full((4,), -1)
    for images in (
        Images(values, labels, ()),
        ImageFiles(Path(), np.array(["5.png", "1.png", "5.png", "2.png"]), labels, (), size=2),
    ):
        ids = image_ids(images)
        assert ids.dtype == torch.int64
        assert ids[0] == ids[2]
        assert len(set(ids.tolist())) == 3
        assert distinct(ids).tolist() == [0, 1, 3]
