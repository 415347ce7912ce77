"""Queues against a plain Python list, their losses against naive loops in float64 with gradients."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from contrast.errors import InputError
from contrast.heads import InfoNCE
from contrast.negatives import Nearest, Paired, Queue
from contrast.negatives.queue import Rows

Held = list[tuple[Tensor, int]]  # vectors with their ids, the oldest first


def held(rows: Rows) -> Held:
    """What a ring holds, from the row that is overwritten next on."""
    at = [(int(rows.head) + i) % len(rows.ids) for i in range(len(rows.ids))]
    return [(rows.vectors[i], int(rows.ids[i])) for i in at if rows.ids[i] != torch.iinfo(torch.int64).min]


def batch(images: int, pairs: int = 1, dim: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Queries and keys [P, B, D] that ask for a gradient."""
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, pairs, images, dim, dtype=torch.float64, generator=generator)
    return query.requires_grad_(), key.requires_grad_()


def filled(queue: Queue | Nearest, ids: Sequence[int], dim: int = 4) -> Held:
    """Puts rows of these ids into the queue; returns what it then should hold."""
    vectors = torch.randn(len(ids), dim, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    queue.update(vectors[None], vectors[None], torch.tensor(ids))
    return list(zip(vectors, ids, strict=True))[-len(queue.rows.ids) :]


def mean_loss(source: Queue | Nearest | Paired, *args: Tensor | None) -> Tensor:
    head = InfoNCE(0.3).double()
    losses, counted = zip(*(head(query, candidates) for query, candidates in source(*args)), strict=True)
    assert torch.cat(counted).all()
    return torch.cat(losses).mean()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b) / (a.norm() * b.norm())


def naive_loss(
    query: Tensor,
    key: Tensor,
    ids: Sequence[int],
    rows: Held,
    in_batch: bool = False,
    positives: bool = False,
    groups: Sequence[int] | None = None,
) -> Tensor:
    """Mean over pairs and queries of log(sum over all that count) - mean over the positives."""
    groups = ids if groups is None else groups
    losses = []
    for q, k in zip(query, key, strict=True):
        for i in range(len(ids)):
            positive, negative = [cosine(q[i], k[i]) / 0.3], []
            for j in range(len(ids)):
                if in_batch and j != i and ids[j] == ids[i]:
                    positive.append(cosine(q[i], k[j]) / 0.3)
                if in_batch and groups[j] != groups[i]:
                    negative.append(cosine(q[i], k[j]) / 0.3)
            for vector, id in rows:
                if positives and id == ids[i]:
                    positive.append(cosine(q[i], vector) / 0.3)
                elif id != groups[i]:
                    negative.append(cosine(q[i], vector) / 0.3)
            total = torch.stack(positive + negative).exp().sum().log()
            losses.append(total - torch.stack(positive).mean())
    return torch.stack(losses).mean()


def assert_same_with_gradients(loss: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(loss, expected)
    got, wanted = torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


# --- the ring


@pytest.mark.parametrize("size", range(1, 10))
def test_a_ring_is_the_end_of_a_list(size: int) -> None:
    for images in range(1, 2 * size + 3):
        rows, everything = Rows(size, 2), []
        for push in range(4):
            ids = torch.arange(images) + 100 * push
            vectors = torch.stack([ids, -ids], dim=1).float()
            rows.push(vectors, ids)
            everything += ids.tolist()
            got = held(rows)
            assert [id for _, id in got] == everything[-size:], (images, push)
            assert [vector.tolist() for vector, _ in got] == [[id, -id] for id in everything[-size:]]


def test_batches_of_any_mixture_of_sizes() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, everything = Rows(7, 1), []
    for images in torch.randint(0, 20, (60,), generator=generator).tolist():
        vectors = torch.rand(images, 1, generator=generator)
        rows.push(vectors, torch.arange(images))
        everything += vectors.flatten().tolist()
        assert [vector.item() for vector, _ in held(rows)] == everything[-7:]


def test_all_pairs_enter_one_after_the_other() -> None:
    queue = Queue(5, 4).double()
    query, key = batch(3, pairs=2)
    queue.update(query, key, torch.tensor([7, 8, 9]))
    assert [id for _, id in held(queue.rows)] == [8, 9, 7, 8, 9]
    torch.testing.assert_close(torch.stack([v for v, _ in held(queue.rows)]), key.flatten(0, 1)[-5:].detach())
    assert not queue.rows.vectors.requires_grad


def test_what_enters_is_the_key_with_its_group_where_there_is_one() -> None:
    query, key = batch(2)
    ids, groups = torch.tensor([7, 8]), torch.tensor([1, 2])
    for source, given, expected in (
        (Queue(3, 4), None, [7, 8]),
        (Queue(3, 4), groups, [1, 2]),
        (Nearest(3, 4), groups, [7, 8]),
    ):
        source.double().update(query, key, ids, given)
        assert [id for _, id in held(source.rows)] == expected
        assert torch.equal(source.rows.vectors[:2], key[0])


def test_keys_of_half_precision_enter_as_they_are() -> None:
    queue = Queue(4, 4)
    key = torch.randn(1, 2, 4).bfloat16()
    queue.update(key, key, torch.arange(2))
    assert queue.rows.vectors.dtype == torch.float32
    assert torch.equal(queue.rows.vectors[:2], key[0].float())


# --- MoCo


@pytest.mark.parametrize("rows", [1, 4, 6, 11])
def test_mocos_loss(rows: int) -> None:
    """He et al. 2020, eq. 1: -log exp(q k+) / (exp(q k+) + sum over the queue), of unit vectors."""
    queue = Queue(6, 4).double()
    past = filled(queue, range(100, 100 + rows))  # 11: the first five are gone
    query, key = batch(3)
    total = query.new_zeros(())
    for i in range(3):
        answer = (cosine(query[0, i], key[0, i]) / 0.3).exp()
        noise = sum((cosine(query[0, i], vector) / 0.3).exp() for vector, _ in past)
        total = total - torch.log(answer / (answer + noise)) / 3
    loss = mean_loss(queue, query, key, torch.arange(3))
    assert_same_with_gradients(loss, total, query, key)


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize(("positives", "grouped"), [(False, False), (True, False), (False, True)])
def test_who_counts(in_batch: bool, positives: bool, grouped: bool) -> None:
    queue = Queue(9, 4, in_batch, positives).double()
    past = filled(queue, [0, 1, 2, 1, 5, 6, 0])  # two rows are empty
    with torch.no_grad():
        queue.rows.vectors[7:] = 1e3  # and what lies there is not looked at
    query, key = batch(5, pairs=2)
    ids, groups = [0, 1, 1, 3, 4], [1, 2, 2, 1, 6] if grouped else None
    given = None if groups is None else torch.tensor(groups)
    loss = mean_loss(queue, query, key, torch.tensor(ids), given)
    expected = naive_loss(query, key, ids, past, in_batch, positives, groups)
    assert_same_with_gradients(loss, expected, query, key)


def test_an_older_view_of_the_image_is_no_negative() -> None:
    queue = Queue(4, 4).double()
    filled(queue, [3, 8])
    query, key = batch(1)
    ((_, candidates),) = queue(query, key, torch.tensor([3]))
    _, valid = candidates.masks()
    assert valid.tolist() == [[False, True, False, False]]


@pytest.mark.parametrize("positives", [False, True])
def test_an_empty_queue_gives_the_loss_zero_and_no_gradient(positives: bool) -> None:
    for dtype in (torch.float32, torch.float64):
        query, key = (x.detach().to(dtype).requires_grad_() for x in batch(3, pairs=2))
        queue, head = Queue(5, 4, positives=positives).to(dtype), InfoNCE(0.01).to(dtype)
        losses, _ = zip(*(head(q, candidates) for q, candidates in queue(query, key, torch.arange(3))), strict=True)
        loss = torch.cat(losses)
        loss.sum().backward()
        assert loss.tolist() == [0] * 6
        assert query.grad.abs().max() == 0
        assert key.grad.abs().max() == 0


def test_an_empty_queue_leaves_the_batch_alone() -> None:
    query, key = batch(4, pairs=2)
    ids = torch.tensor([0, 1, 1, 2])
    loss = mean_loss(Queue(5, 4, in_batch=True).double(), query, key, ids)
    assert_same_with_gradients(loss, mean_loss(Paired(), query, key, ids), query, key)


def test_reading_does_not_write() -> None:
    queue = Queue(5, 4, in_batch=True).double()
    filled(queue, [3, 8])
    before = copy.deepcopy(queue.state_dict())
    query, key = batch(3)
    mean_loss(queue, query, key, torch.arange(3)).backward()
    for name, value in queue.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_reset_is_a_new_queue() -> None:
    queue, new = Queue(5, 4).double(), Queue(5, 4).double()
    filled(queue, range(3))
    queue.reset()
    for name, value in new.state_dict().items():
        assert torch.equal(queue.state_dict()[name], value), name
    assert filled(queue, [4, 5, 6])[0][0].equal(held(queue.rows)[0][0])


@pytest.mark.parametrize("make", [Queue, Nearest])
def test_all_of_a_queue_is_in_the_state_dict(make: type[Queue] | type[Nearest]) -> None:
    one, other = make(5, 4).double(), make(5, 4).double()
    filled(one, range(8))
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    query, key = batch(3)
    for queue in (one, other):
        queue.update(query, key, torch.tensor([20, 21, 22]))
    assert [id for _, id in held(other.rows)] == [6, 7, 20, 21, 22]
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


# --- NNCLR


def naive_nnclr(query: Tensor, key: Tensor, rows: Held) -> Tensor:
    """Dwibedi et al. 2021, eq. 3: the neighbour of view 2 asks, the predictions of view 1 answer."""
    losses = []
    for p in range(len(query)):
        for i in range(query.shape[1]):
            neighbour = key[p, i].detach()
            if rows:
                neighbour = max((vector for vector, _ in rows), key=lambda v: float(cosine(key[p, i].detach(), v)))
            scores = torch.stack([cosine(neighbour, answer) / 0.3 for answer in query[p]])
            losses.append(-(scores[i].exp() / scores.exp().sum()).log())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("rows", [0, 1, 5, 9])
def test_nnclrs_loss(rows: int) -> None:
    nearest = Nearest(6, 4).double()
    past = filled(nearest, range(rows)) if rows else []
    query, key = batch(4, pairs=2)
    loss = mean_loss(nearest, query, key, torch.arange(4))
    assert_same_with_gradients(loss, naive_nnclr(query, key, past), query)
    assert torch.autograd.grad(mean_loss(nearest, query, key, torch.arange(4)), key, allow_unused=True) == (None,)


def test_the_neighbour_asks_and_the_predictions_answer() -> None:
    nearest = Nearest(6, 4).double()
    past = filled(nearest, range(6))
    query, key = batch(3, pairs=2)
    asked = nearest(query, key, torch.arange(3))
    for p, (asking, candidates) in enumerate(asked):
        assert candidates.vectors is query[p] or torch.equal(candidates.vectors, query[p])
        assert not asking.requires_grad
        assert all(any(torch.equal(row, vector) for vector, _ in past) for row in asking)


def test_rows_that_are_not_filled_are_nobodys_neighbours() -> None:
    nearest = Nearest(6, 4).double()
    ((only, _),) = filled(nearest, [0])
    key = -only[None]  # every empty row is nearer
    assert torch.equal(nearest.nearest(key), only[None])


def test_neighbours_are_compared_in_single_precision_under_autocast() -> None:
    nearest = Nearest(3, 2)
    angles = torch.tensor([0.02, 0.01, 0.0])  # cosines that bfloat16 cannot tell apart
    nearest.rows.push(torch.stack([angles.cos(), angles.sin()], dim=1), torch.arange(3))
    with torch.autocast("cpu", torch.bfloat16):
        found = nearest.nearest(torch.tensor([[1.0, 0.0]]))
    assert found.tolist() == [[1, 0]]


# --- errors


def test_errors_carry_the_numbers() -> None:
    query, key = batch(2)
    with pytest.raises(InputError, match="at least 1 row and 1 dimension, got 0 and 4"):
        Queue(0, 4)
    with pytest.raises(InputError, match="at least 1 row and 1 dimension, got 3 and 0"):
        Nearest(3, 0)
    with pytest.raises(InputError, match="a queue needs keys"):
        Queue(4, 4).double()(query, None, torch.arange(2))
    with pytest.raises(InputError, match="nearest neighbours need keys"):
        Nearest(4, 4).double()(query, None, torch.arange(2))
    with pytest.raises(InputError, match="paired negatives need a key"):
        Paired()(query, None, torch.arange(2))
    with pytest.raises(InputError, match="a batch of 1 image has no negatives"):
        Paired()(query[:, :1], key[:, :1], torch.arange(1))
    with pytest.raises(InputError, match="queries have 4 dimensions, candidates 5"):
        mean_loss(Queue(3, 5).double(), query, key, torch.arange(2))
    # the rows hold groups: whose id a row is can no longer be told
    with pytest.raises(InputError, match="same_label=ignored"):
        Queue(4, 4, positives=True).double()(query, key, torch.arange(2), torch.arange(2))
