"""InfoNCE against its definition in naive loops, in float64, with gradients; the identities of docs/design.md."""

import math

import pytest
import torch
import torch.nn.functional as F

from contrast.candidates import Candidates
from contrast.errors import InputError
from contrast.heads import InfoNCE, softmax_loss
from contrast.losses.similarity import similarity
from contrast.negatives import InBatch


def naive_nt_xent(z: torch.Tensor, temperature: float) -> torch.Tensor:
    """Chen et al. 2020, eq. 1, averaged over all 2N views; z [2, N, D]."""
    z = z.flatten(0, 1)
    n = len(z) // 2

    def sim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b) / (a.norm() * b.norm())

    total = z.new_zeros(())
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        denominator = sum((sim(z[i], z[k]) / temperature).exp() for k in range(2 * n) if k != i)
        total = total - torch.log((sim(z[i], z[j]) / temperature).exp() / denominator)
    return total / (2 * n)


def naive_sup_con(z: torch.Tensor, ids: list[int], temperature: float) -> torch.Tensor:
    """Khosla et al. 2020, eq. 2; z [N, D]; rows without a positive do not count."""
    z = z / z.norm(dim=1, keepdim=True)
    losses = []
    for i in range(len(z)):
        positives = [p for p in range(len(z)) if p != i and ids[p] == ids[i]]
        if positives:
            others = torch.stack([z[i] @ z[a] / temperature for a in range(len(z)) if a != i])
            lse = others.exp().sum().log()
            losses.append(sum(lse - z[i] @ z[p] / temperature for p in positives) / len(positives))
    return sum(losses) / len(losses)


def in_batch(head: torch.nn.Module, z: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and which count, of z [V, B, D] against itself."""
    ((query, candidates),) = InBatch()(z, None, ids)
    return head(query, candidates)


@pytest.mark.parametrize("images", [2, 3, 7])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 1.0])
def test_nt_xent_is_its_definition(images: int, temperature: float) -> None:
    torch.manual_seed(images)
    z = torch.randn(2, images, 5, dtype=torch.float64, requires_grad=True)
    losses, counted = in_batch(InfoNCE(temperature).double(), z, torch.arange(images))
    assert counted.all()
    expected = naive_nt_xent(z, temperature)
    torch.testing.assert_close(losses.mean(), expected)
    grad, expected_grad = (torch.autograd.grad(x, z)[0] for x in (losses.mean(), expected))
    torch.testing.assert_close(grad, expected_grad)


def test_several_positives_are_sup_con() -> None:
    torch.manual_seed(0)
    z = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([3, 3, 3, 1, 1, 0, 0, 0, 8])  # 8 has no positive
    candidates = Candidates(z, ids, ids, self_index=torch.arange(9))
    losses, counted = InfoNCE(0.2).double()(z, candidates)
    assert counted.tolist() == [True] * 8 + [False]
    assert losses[8] == 0
    loss, expected = losses.sum() / 8, naive_sup_con(z, ids.tolist(), 0.2)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], torch.autograd.grad(expected, z)[0])


def test_multi_crop_takes_every_other_view_as_positive() -> None:
    torch.manual_seed(1)
    z = torch.randn(4, 3, 6, dtype=torch.float64)
    losses, _ = in_batch(InfoNCE(0.1).double(), z, torch.tensor([5, 6, 7]))
    expected = naive_sup_con(z.flatten(0, 1), [5, 6, 7] * 4, 0.1)
    torch.testing.assert_close(losses.mean(), expected)


def test_over_a_whole_table_it_is_cross_entropy() -> None:
    torch.manual_seed(2)
    query = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    table = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randint(11, (6,))
    losses, _ = InfoNCE(0.7, cosine=False).double()(query, Candidates(table, target, torch.arange(11)))
    expected = F.cross_entropy(query @ table.T / 0.7, target, reduction="none")
    torch.testing.assert_close(losses, expected)
    for x in (query, table):
        torch.testing.assert_close(
            torch.autograd.grad(losses.sum(), x, retain_graph=True)[0],
            torch.autograd.grad(expected.sum(), x, retain_graph=True)[0],
        )


def test_log_q_is_subtracted_and_one_set_per_query_is_the_shared_set() -> None:
    """Ranking NCE: scores 2, 1, 0, 1 against the noise .4, .3, .2, .3 (k = 3) lose 0.811678."""
    scores = torch.tensor([[2.0, 1.0, 0.0, 1.0]], dtype=torch.float64)
    query, table = torch.ones(1, 1, dtype=torch.float64), scores.T
    log_q = torch.tensor([0.4, 0.3, 0.2, 0.3], dtype=torch.float64).log()
    ids = torch.tensor([0, 1, 2, 1])
    head = InfoNCE(1.0, cosine=False).double()
    shared, _ = head(query, Candidates(table, torch.tensor([0]), ids, log_q=log_q))
    per_query, _ = head(query, Candidates(table[None], torch.tensor([0]), ids[None], log_q=log_q[None]))
    assert shared.item() == pytest.approx(0.811678, abs=5e-7)
    assert per_query.item() == pytest.approx(shared.item(), abs=1e-12)
    plain, _ = head(query, Candidates(table, torch.tensor([0]), ids))
    assert plain.item() == pytest.approx(0.626523, abs=5e-7)


def test_the_softmax_is_applied_once() -> None:
    """Three rows of scores, class 9: their negative log-likelihoods, and what a second softmax would make of them."""
    rows = torch.tensor(
        [[0.1] * 10, [0.2, 0.05, 0.05] + [0.1] * 7, [0.1, 0.05, 0.05] + [0.0] * 6 + [0.8]],
        dtype=torch.float64,
    )
    positive = torch.zeros(3, 10, dtype=torch.bool)
    positive[:, 9] = True
    once = softmax_loss(rows, positive, torch.ones_like(positive))
    twice = softmax_loss(rows.softmax(dim=1), positive, torch.ones_like(positive))
    assert once.tolist() == pytest.approx([2.302585, 2.303348, 1.636526], abs=5e-7)
    assert twice.tolist() == pytest.approx([2.302585, 2.302669, 2.208446], abs=5e-7)


def test_tiles_see_the_same_masks() -> None:
    torch.manual_seed(3)
    ids = torch.randint(4, (10,))
    whole = Candidates(torch.randn(10, 3), ids, ids, self_index=torch.arange(10), log_q=torch.randn(10, 10))
    positive, valid = whole.masks()
    for rows in (slice(0, 4), slice(4, 10)):
        for columns in (slice(0, 3), slice(3, 7), slice(7, 10)):
            tile = whole.tile(rows, columns)
            tile_positive, tile_valid = tile.masks()
            assert torch.equal(tile_positive, positive[rows, columns])
            assert torch.equal(tile_valid, valid[rows, columns])
            assert torch.equal(tile.vectors, whole.vectors[columns])
            assert torch.equal(tile.log_q, whole.log_q[rows, columns])


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("temperature", "tolerance"), [(0.5, 2e-5), (0.05, 2e-5), (0.005, 4e-4)])
def test_float32_gradients_are_those_of_float64(temperature: float, tolerance: float) -> None:
    torch.manual_seed(4)
    z = torch.randn(2, 64, 32)
    z[1] = z[0] + 0.3 * torch.randn(64, 32)
    grads = []
    for dtype in (torch.float32, torch.float64):
        x = z.to(dtype).requires_grad_()
        losses, _ = in_batch(InfoNCE(temperature).to(dtype), x, torch.arange(64))
        grads.append(torch.autograd.grad(losses.mean(), x)[0])
    assert relative_error(grads[0], grads[1]) < tolerance


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [0.0, 1e-2, 1.0, 65504.0])
def test_stress_stays_finite(dtype: torch.dtype, scale: float) -> None:
    torch.manual_seed(5)
    z = (torch.rand(2, 6, 8) * 2 - 1).mul(scale).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = in_batch(InfoNCE(0.005), z, torch.arange(6))
    assert losses.dtype == torch.float32
    losses.mean().backward()
    assert losses.isfinite().all()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_no_positive_and_no_negative_are_zero_with_zero_gradient() -> None:
    scores = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    positive = torch.zeros(3, 4, dtype=torch.bool)
    valid = torch.ones(3, 4, dtype=torch.bool)
    positive[1, 2] = valid[1] = True
    valid[1, [0, 1, 3]] = False
    losses = softmax_loss(scores, positive, valid)
    losses.sum().backward()
    assert losses.tolist() == [0, 0, 0]
    assert scores.grad is not None
    assert scores.grad.abs().max() == 0


def test_describe_is_the_naive_statistics() -> None:
    torch.manual_seed(6)
    z = torch.randn(2, 5, 4)
    z[1, :3] = z[0, :3]
    head = InfoNCE(0.3)
    ((_, candidates),) = InBatch()(z, None, torch.arange(5))
    told = head.describe(z.flatten(0, 1), candidates)
    scores = similarity(z.flatten(0, 1), z.flatten(0, 1)) / 0.3
    hits, positives, negatives = [], [], []
    for i in range(10):
        others = [j for j in range(10) if j != i]
        best = max(others, key=lambda j: scores[i, j].item())
        hits.append(best == (i + 5) % 10)
        positives.append(scores[i, (i + 5) % 10].item())
        negatives.append(sum(scores[i, j].item() for j in others if j != (i + 5) % 10) / 8)
    losses, _ = head(z.flatten(0, 1), candidates)
    assert told["top1"].item() == pytest.approx(sum(hits) / 10)
    assert told["positive_score"].item() == pytest.approx(sum(positives) / 10, rel=1e-5)
    assert told["negative_score"].item() == pytest.approx(sum(negatives) / 10, rel=1e-4, abs=1e-5)
    assert told["bound"].item() == pytest.approx(math.log(9) - losses.mean().item(), rel=1e-5)


def test_errors_carry_the_numbers() -> None:
    z = torch.randn(2, 1, 4)
    with pytest.raises(InputError, match="a batch of 1 image has no negatives"):
        InBatch()(z, None, torch.arange(1))
    with pytest.raises(InputError, match="at least 2 views of an image, got 1"):
        InBatch()(z[:1], None, torch.arange(1))
    with pytest.raises(InputError, match="queries have 3 dimensions, candidates 4"):
        similarity(torch.randn(2, 3), torch.randn(5, 4))


def test_a_collapsed_encoder_has_top1_of_0() -> None:
    """All scores are equal: argmax would take the first of them, which is the query's own positive."""
    same = torch.ones(4, 3)
    queue = Candidates(torch.ones(9, 3), torch.arange(4), positives=same[:, None])
    batch = Candidates(same, torch.arange(4), ids=torch.arange(4))
    for candidates in (queue, batch):
        assert InfoNCE(0.2).describe(same, candidates)["top1"] == 0


def test_what_no_query_measures_is_not_a_number() -> None:
    """The nodes of a path are all positive: there is no negative to rank a positive against."""
    ids = torch.zeros(4, dtype=torch.long)
    metrics = InfoNCE(0.2).describe(torch.randn(4, 3), Candidates(torch.randn(5, 3), ids, ids=torch.zeros(5)))
    assert all(metrics[name].isnan() for name in ("top1", "positive_score", "negative_score", "bound"))
    assert metrics["temperature"] == pytest.approx(0.2)


def test_float64_queries_and_float32_candidates_are_compared_in_float64() -> None:
    query, vectors = torch.randn(4, 3, dtype=torch.float64), torch.randn(6, 3)
    ids = torch.arange(4), torch.arange(6)
    for tiled in (True, False):
        losses, _ = InfoNCE(0.2, tiled=tiled)(query, Candidates(vectors, *ids))
        expected, _ = InfoNCE(0.2, tiled=tiled)(query, Candidates(vectors.double(), *ids))
        torch.testing.assert_close(losses, expected)
