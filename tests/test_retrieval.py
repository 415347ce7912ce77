"""Recall and mean average precision against loops, under ties, in blocks; right answers by caption and by label."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from contrast.data.images.image_set import ImageFiles, Images
from contrast.errors import InputError
from contrast.evaluation.encoder import Towers
from contrast.evaluation.features import EvaluationData
from contrast.evaluation.retrieval import distinct, image_keys, recall, recall_by_label, retrieval, retrieval_names


def same(query_ids: Tensor, key_ids: Tensor) -> Tensor:
    """The pairs [P, 2] of queries and keys with equal ids."""
    return (query_ids[:, None] == key_ids).nonzero()


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
    query, key, *given_ids = given = problem(m, n, ids)
    found = recall(query, key, same(*given_ids), k=(1, 2, 5, 10, 100), block=block)
    assert found == {k: pytest.approx(naive(*given, k)) for k in (1, 2, 5, 10, 100)}
    assert found[1] <= found[2] <= found[5] <= found[10] <= found[100] == 1
    if n > 20:
        assert 0 < found[1] < found[10]


def test_known_values():
    key, pairs = torch.eye(4), same(torch.arange(4), torch.arange(4))
    query = torch.tensor([[3.0, 2, 1, 0], [3, 2, 1, 0], [3, 2, 1, 0], [3, 2, 1, 0]])
    assert recall(query, key, pairs, k=(1, 2, 3, 4)) == {1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0}
    assert recall(7 * key, 0.01 * key, pairs, k=[1]) == {1: 1.0}
    assert recall(-key, key, pairs, k=[3]) == {3: 0.0}


@pytest.mark.parametrize("block", [3, 512])
@pytest.mark.parametrize("width", [3, 64, 513])
def test_equal_embeddings_answer_nothing_until_every_other_key_fits(block: int, width: int):
    row = torch.randn(width, generator=torch.Generator().manual_seed(width))
    ids = torch.arange(40) // 2  # each of twenty ids has two keys
    lengths = torch.rand(40, 1, generator=torch.Generator().manual_seed(0))
    for embedding in (row.expand(40, -1), torch.zeros(40, width), row * lengths):
        found = recall(embedding, embedding, same(ids, ids), k=(1, 10, 38, 39), block=block)
        assert found == {1: 0.0, 10: 0.0, 38: 0.0, 39: 1.0}


@pytest.mark.parametrize("block", [2, 5, 512])
def test_ties_count_against_whatever_the_order(block: int):
    random = torch.Generator().manual_seed(3)
    key = torch.randint(-1, 2, (30, 3), generator=random).float()
    query = torch.randint(-1, 2, (25, 3), generator=random).float()
    query_ids, key_ids = torch.arange(25) % 6, torch.arange(30) % 6
    wanted = {k: pytest.approx(naive(query, key, query_ids, key_ids, k)) for k in (1, 3, 8)}
    assert recall(query, key, same(query_ids, key_ids), k=(1, 3, 8), block=block) == wanted
    for seed in range(3):
        at = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
        assert recall(query, key[at], same(query_ids, key_ids[at]), k=(1, 3, 8), block=block) == wanted


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
    query, key, query_ids, key_ids = problem(900, 1000, 1000)
    pairs = same(query_ids, key_ids)
    with Largest() as largest:
        found = recall(query, key, pairs, block=80)
    assert largest.elements == 80 * 80
    assert found == recall(query, key, pairs, block=2000)


def test_half_precision_under_autocast_is_ranked_in_float64():
    query, key, query_ids, key_ids = problem(60, 50, 50)
    query, key = query.bfloat16(), key.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = recall(query, key, same(query_ids, key_ids))
    assert found == {k: pytest.approx(naive(query, key, query_ids, key_ids, k)) for k in (1, 5, 10)}


def test_bad_input_is_refused_with_its_numbers():
    query, key, query_ids, key_ids = problem(6, 8, 8)
    pairs = same(query_ids, key_ids)
    with pytest.raises(InputError, match=r"\[6, 4\] and \[8, 5\]"):
        recall(query[:, :4], key, pairs)
    with pytest.raises(InputError, match=r"\[0, 5\] and \[8, 5\]"):
        recall(query[:0], key, pairs[:0])
    with pytest.raises(InputError, match=r"pairs \[P, 2\] .* got \[6\]"):
        recall(query, key, pairs[:, 0])
    with pytest.raises(InputError, match="2 of 6 queries have no right answer"):
        recall(query, key, pairs[:4])
    broken = key.clone()
    broken[2, 1] = torch.nan
    with pytest.raises(InputError, match="1 of 8 keys are not finite"):
        recall(query, broken, pairs)
    for options in ({"k": (0, 1)}, {"k": ()}, {"block": 0}):
        with pytest.raises(InputError, match="must be 1 or more"):
            recall(query, key, pairs, **options)


@pytest.mark.parametrize(("place", "value"), [(0, -1), (1, -1), (0, 6), (1, 8)])
def test_a_pair_of_no_query_or_no_key_does_not_wrap_around(place: int, value: int):
    query, key, query_ids, key_ids = problem(6, 8, 8)
    pairs = torch.cat([same(query_ids, key_ids), torch.zeros(1, 2, dtype=torch.int64)])
    pairs[-1, place] = value
    with pytest.raises(InputError, match="1 of 7 pairs name none of 6 queries or 8 keys"):
        recall(query, key, pairs)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32, "numpy"])
def test_pairs_of_every_type_of_whole_numbers(dtype: torch.dtype | str):
    query, key, query_ids, key_ids = problem(37, 23, 23)
    pairs = same(query_ids, key_ids)
    given = pairs.numpy().astype("uint16") if dtype == "numpy" else pairs.to(dtype)
    assert recall(query, key, given) == recall(query, key, pairs)
    with pytest.raises(InputError, match="pairs must be whole numbers"):
        recall(query, key, pairs + 0.5)


class Table(nn.Module):
    """The vectors of one-pixel images, or of one-token captions, by the value of the pixel or token."""

    num_features = 4

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)

    def forward(self, values: Tensor) -> Tensor:
        return self.vectors[values.flatten().long()]

    embed = forward


def retrieved(rows: list[tuple[int, int]], pictures: Tensor, captions: Tensor, ks: tuple[int, ...]) -> dict[str, float]:
    """What `retrieval` finds in a data set of rows of (image, caption) with these vectors."""
    image, text = torch.tensor(rows).T
    images = Images(image.to(torch.uint8).view(-1, 1, 1, 1), torch.full((len(rows),), -1), (), text[:, None])
    towers = Towers(nn.Identity(), Table(pictures), nn.Identity(), Table(captions))
    return retrieval(EvaluationData(towers, images, images, torch.device("cpu")), ks)


def test_a_caption_of_two_images_does_not_lend_them_their_other_captions():
    rows = [(0, 0), (0, 1), (1, 1), (1, 2)]  # image A has captions x and y, image B y and z
    x, y, z, _ = torch.eye(4)
    wrong = retrieved(rows, torch.stack([z, x]), torch.stack([x, y, z]), (1,))  # A is nearest to z, B to x
    assert wrong == {"image_to_text_recall1": 0, "text_to_image_recall1": pytest.approx(1 / 3)}  # y is of both
    half = retrieved(rows, torch.stack([z, z + 0.1 * y]), torch.stack([x, y, z]), (1,))
    assert half["image_to_text_recall1"] == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_the_right_answers_are_those_of_the_rows_of_a_query(seed: int):
    random = torch.Generator().manual_seed(seed)
    rows = torch.randint(1, 13, (40, 2), generator=random).tolist()
    vectors = torch.randn(2, 13, 4, dtype=torch.float64, generator=random).float()
    ks = (1, 2, 5)
    found = retrieved([(a, b) for a, b in rows], *vectors, ks)
    for side, name in enumerate(("image_to_text", "text_to_image")):
        queries, keys = ({row[place] for row in rows} for place in (side, 1 - side))
        for k in ks:
            answered = 0
            for query in queries:
                cosine = {
                    key: float(torch.cosine_similarity(vectors[side, query], vectors[1 - side, key], dim=0))
                    for key in keys
                }
                nearest = sorted(keys, key=lambda key: -cosine[key])[:k]
                answered += any([query, key][:: 1 - 2 * side] in rows for key in nearest)
            assert found[f"{name}_recall{k}"] == pytest.approx(answered / len(queries))


def naive_by_label(features: Tensor, labels: Tensor, ks: tuple[int, ...]) -> dict[str, float]:
    """Each image ranks all others by cosine; of equal ones those of other labels come first."""
    rows, names = features.double(), labels.tolist()
    answered, average_precisions = dict.fromkeys(ks, 0), []
    for query, own in enumerate(names):
        ranked = []
        for other, theirs in enumerate(names):
            cosine = float(rows[query] @ rows[other]) / max(float(rows[query].norm() * rows[other].norm()), 1e-300)
            if other != query:
                ranked.append((-round(cosine, 12), theirs == own))
        ranked.sort()
        precisions, right = [], 0
        for place, (_, same_label) in enumerate(ranked, start=1):
            right += same_label
            if same_label:
                precisions.append(right / place)
        if not precisions:
            continue
        average_precisions.append(sum(precisions) / len(precisions))
        for k in ks:
            answered[k] += any(same_label for _, same_label in ranked[:k])
    count = len(average_precisions)
    metrics = {f"recall{k}": answered[k] / count for k in ks}
    return metrics | {"map": sum(average_precisions) / count, "queries_left_out": len(names) - count}


@pytest.mark.parametrize("block", [1, 100, 2**22])
@pytest.mark.parametrize("ties", [False, True])
def test_retrieval_by_label_is_its_definition(block: int, ties: bool):
    random = torch.Generator().manual_seed(1)
    features = torch.randn(45, 4, generator=random)
    labels = torch.randint(0, 7, (45,), generator=random)
    labels[[3, 30]] = torch.tensor([11, 8])  # no other image has these labels
    features = features.sign() * (torch.rand(45, 4, generator=random) > 0.5) if ties else features
    found = recall_by_label(features, labels, (1, 2, 5, 100), block)
    assert found == pytest.approx(naive_by_label(features, labels, (1, 2, 5, 100)))
    assert found["queries_left_out"] == 2
    assert found["recall1"] < found["recall5"] < found["recall100"] == 1
    at = torch.randperm(45, generator=random)
    assert recall_by_label(features[at], labels[at], (1, 2, 5, 100), block) == pytest.approx(found)


@pytest.mark.parametrize("width", [3, 64, 513])
def test_equal_features_are_the_worst_ranking(width: int):
    row = torch.randn(width, generator=torch.Generator().manual_seed(width))
    labels = torch.arange(40) // 2
    for features in (row.expand(40, -1), torch.zeros(40, width), row * torch.rand(40, 1)):
        found = recall_by_label(features, labels, (1, 38, 39))
        assert found == {
            "recall1": 0,
            "recall38": 0,
            "recall39": 1,
            "map": pytest.approx(1 / 39),
            "queries_left_out": 0,
        }


def test_known_values_by_label():
    angle = torch.tensor([0.0, 1, 2.1, 3.3]).deg2rad()
    features, labels = torch.stack([angle.cos(), angle.sin()], dim=1), torch.tensor([0, 1, 0, 0])
    # queries 0, 2 and 3 rank the labels 1 0 0, 1 0 0 and 0 1 0
    mean = ((1 / 2 + 2 / 3) / 2 * 2 + (1 + 2 / 3) / 2) / 3
    wanted = {"recall1": pytest.approx(1 / 3), "recall2": 1, "map": pytest.approx(mean), "queries_left_out": 1}
    assert recall_by_label(features, labels, (1, 2)) == wanted


def test_no_tensor_of_retrieval_by_label_is_larger_than_its_block():
    features, _, labels, _ = problem(900, 900, 30)
    with Largest() as largest:
        found = recall_by_label(features, labels, block=9_000)
    assert largest.elements == 9_000
    assert found == pytest.approx(recall_by_label(features, labels))


def test_bad_input_by_label_is_refused_with_its_numbers():
    features, _, labels, _ = problem(6, 8, 3)
    with pytest.raises(InputError, match="1 of 6 rows have no label"):
        recall_by_label(features, torch.tensor([0, 0, 1, 1, 2, -1]))
    with pytest.raises(InputError, match="none of 6 images"):
        recall_by_label(features, torch.arange(6))
    with pytest.raises(InputError, match="1 of 6 rows are not finite"):
        recall_by_label(features.masked_fill(features == features[2, 1], torch.nan), labels)
    for options in ({"k": (0, 1)}, {"k": ()}, {"block": 0}):
        with pytest.raises(InputError, match="must be 1 or more"):
            recall_by_label(features, labels, **options)


def test_images_without_captions_are_searched_by_label():
    values, labels = torch.arange(12, dtype=torch.uint8), torch.arange(12) % 3
    vectors = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    images = Images(values.view(-1, 1, 1, 1), labels, ("a", "b", "c"))
    found = retrieval(EvaluationData(Table(vectors), images, images, torch.device("cpu")))
    assert found == pytest.approx(naive_by_label(vectors, labels, (1, 5, 10)))
    assert set(found) == retrieval_names(captions=False)


def test_equal_texts_are_one():
    text = torch.tensor([[3, 4, 0], [1, 0, 0], [3, 4, 0], [3, 0, 4], [1, 0, 0]])
    first, number = distinct(text.numpy())
    assert sorted(first.tolist()) == [0, 1, 3]
    assert torch.equal(text[first][number], text)


def test_equal_images_are_one():
    values = torch.tensor([5, 1, 5, 2], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 2, 3).contiguous()
    labels = torch.full((4,), -1)
    for images in (
        Images(values, labels, ()),
        ImageFiles(Path(), np.array(["5.png", "1.png", "5.png", "2.png"]), labels, (), size=2),
    ):
        first, number = distinct(image_keys(images))
        assert number.dtype == torch.int64
        assert sorted(first.tolist()) == [0, 1, 3]
        assert first[number].tolist() == [0, 1, 0, 3]
