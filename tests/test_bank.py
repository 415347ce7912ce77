"""The memory bank: its update and its losses against naive loops in float64, and the draws of its noise."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contrast.errors import InputError
from contrast.heads import NCE, InfoNCE
from contrast.negatives import Bank
from contrast.samplers import LogUniform, Uniform

N, D = 7, 4


class Given(nn.Module):
    """A sampler whose draws are given."""

    def __init__(self, q: list[float], draws: list[int]) -> None:
        super().__init__()
        self.size, self.q, self.draws = len(q), torch.tensor(q, dtype=torch.float64), torch.tensor(draws)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        assert shape == self.draws.shape
        return self.draws

    def log_prob(self, ids: Tensor) -> Tensor:
        return self.q[ids].log()


def bank(*args: object, rows: int = N, **kwargs: object) -> Bank:
    torch.manual_seed(0)
    return Bank(rows, D, *args, **kwargs).double()


def queries(views: int = 1, images: int = 3) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(views, images, D, dtype=torch.float64, requires_grad=True)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def directions(cosines: list[float]) -> Tensor:
    """Unit vectors [len, 2] at these cosines to (1, 0)."""
    return torch.tensor([[c, math.sqrt(1 - c * c)] for c in cosines], dtype=torch.float64)


# --- the update


def test_the_update_by_hand() -> None:
    """m = 0.5, row (1, 0), embedding (0.6, 0.8): the new row is (0.8, 0.4) / sqrt(0.8)."""
    memory = Bank(2, 2, momentum=0.5).double()
    memory.vectors[:] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    memory.update(torch.tensor([[[1.2, 1.6]]], dtype=torch.float64), None, torch.tensor([1]))
    assert memory.vectors[1].tolist() == pytest.approx([0.894427, 0.447214], abs=5e-7)
    assert memory.vectors[0].tolist() == [0, 1]


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9])
def test_the_update_moves_the_rows_of_the_batch_and_no_others(views: int, momentum: float) -> None:
    memory, query, ids = bank(momentum=momentum), queries(views), [5, 0, 3]
    expected = [row.clone() for row in memory.vectors]
    for image, id in enumerate(ids):
        embedding = sum(query[v, image] / query[v, image].norm() for v in range(views)) / views
        embedding = embedding / embedding.norm()
        row = momentum * expected[id] + (1 - momentum) * embedding
        expected[id] = (row / row.norm()).detach()
    memory.update(query, None, torch.tensor(ids))
    torch.testing.assert_close(memory.vectors, torch.stack(expected))
    torch.testing.assert_close(memory.vectors.norm(dim=1), torch.ones(N, dtype=torch.float64))
    assert not memory.vectors.requires_grad


def test_an_image_that_is_there_twice_counts_once() -> None:
    """As with on_error=skip, where another image stands in for one that cannot be read."""
    once, twice, query = bank(), bank(), queries(images=5)
    once.update(query[:, [0, 1, 3]], None, torch.tensor([2, 4, 6]))
    twice.update(query, None, torch.tensor([2, 4, 2, 6, 4]))
    assert torch.equal(once.vectors, twice.vectors)


def test_rows_start_as_unit_vectors_and_reading_does_not_write() -> None:
    memory = bank(Uniform(N), draws=3)
    torch.testing.assert_close(memory.vectors.norm(dim=1), torch.ones(N, dtype=torch.float64))
    before = memory.vectors.clone()
    ((query, candidates),) = memory(queries(), None, torch.arange(3), generator=seeded(0))
    InfoNCE(0.1).double()(query, candidates)[0].sum().backward()
    assert torch.equal(memory.vectors, before)
    assert list(memory.parameters()) == []


# --- the whole bank


def test_over_the_whole_bank_it_is_cross_entropy() -> None:
    memory, query, ids = bank(), queries(views=2), torch.tensor([5, 0, 5])
    ((asking, candidates),) = memory(query, None, ids)
    losses, counted = InfoNCE(0.2).double()(asking, candidates)
    assert counted.all()
    scores = F.normalize(query.flatten(0, 1), dim=1) @ memory.vectors.T / 0.2
    expected = F.cross_entropy(scores, ids.repeat(2), reduction="none")
    torch.testing.assert_close(losses, expected)
    got, wanted = (torch.autograd.grad(x.sum(), query)[0] for x in (losses, expected))
    torch.testing.assert_close(got, wanted)


# --- noise


def test_nce_by_hand() -> None:
    """n = 8 rows, K = 3 uniform draws, T = 0.07, scores 0.8 (own row), 0.2, -0.1, 0.3; Z = n mean exp(s / T)."""
    memory = Bank(8, 2, Given([1 / 8] * 8, [1, 2, 3]), draws=3).double()
    memory.vectors[:] = directions([0.8, 0.2, -0.1, 0.3, 0.9, 0.9, 0.9, 0.9])
    query = torch.tensor([[[3.0, 0.0]]], dtype=torch.float64)
    head = NCE(0.07, bias=-math.log(184001.771882)).double()
    ((asking, candidates),) = memory(query, None, torch.tensor([0]))
    scores = head.scores(asking, candidates)
    assert scores.values[0].tolist() == pytest.approx([0.286700, -8.284729, -12.570443, -6.856157], abs=2e-6)
    assert scores.positive[0].tolist() == [True, False, False, False]
    assert head(asking, candidates)[0].item() == pytest.approx(0.561345, abs=5e-7)


def test_nces_loss_and_gradient() -> None:
    """Wu et al. 2018, eq. 7: h = P / (P + K / N), P = exp(s / T) / Z; -log h(own row) - sum of log(1 - h(noise))."""
    draws = [4, 0, 4, 6, 5]  # 0 and 5 are own rows too, and stay noise
    memory, query, ids = bank(Given([1 / N] * N, draws), draws=5), queries(views=2), [5, 0, 2]
    ((asking, candidates),) = memory(query, None, torch.tensor(ids))
    losses, counted = NCE(0.5, bias=-math.log(11.0)).double()(asking, candidates)
    assert counted.all()
    expected = []
    for v in range(2):
        for image, id in enumerate(ids):
            unit = query[v, image] / query[v, image].norm()

            def h(row: int, unit: Tensor = unit) -> Tensor:
                p = (unit @ memory.vectors[row] / 0.5).exp() / 11
                return p / (p + 5 / N)

            expected.append(-h(id).log() - sum((1 - h(row)).log() for row in draws))
    torch.testing.assert_close(losses, torch.stack(expected))
    got, wanted = (torch.autograd.grad(x.sum(), query)[0] for x in (losses, torch.stack(expected)))
    torch.testing.assert_close(got, wanted)


def test_draws_are_shared_by_all_queries_and_a_function_of_the_generator() -> None:
    sampler = LogUniform(N)
    memory, query, ids = bank(sampler, draws=50), queries(views=2), torch.tensor([5, 0, 2])

    def noise(seed: int) -> Tensor:
        ((_, candidates),) = memory(query, None, ids, generator=seeded(seed))
        drawn = sampler.draw((50,), seeded(seed))
        assert torch.equal(candidates.vectors, memory.vectors[drawn])  # [K, D]: one set for all
        torch.testing.assert_close(candidates.log_q, sampler.log_prob(drawn) + math.log(50))
        torch.testing.assert_close(candidates.positives, memory.vectors[ids.repeat(2)][:, None])
        torch.testing.assert_close(candidates.positives_log_q, sampler.log_prob(ids.repeat(2))[:, None] + math.log(50))
        positive, valid = candidates.masks()
        assert valid.all()  # the own row too
        assert not positive.any()
        return candidates.vectors

    assert torch.equal(noise(0), noise(0))
    assert not torch.equal(noise(0), noise(1))


def test_near_draws_come_from_the_softmax_of_the_cosines() -> None:
    draws = 20_000
    memory, ids = bank(proximity=0.4, draws=draws), torch.tensor([5, 0])
    query = queries(views=2, images=2)
    ((asking, candidates),) = memory(query, None, ids, generator=seeded(0))
    assert candidates.vectors.shape == (4, draws, D)
    for each in range(4):
        unit = asking[each].detach() / asking[each].detach().norm()
        q = [float(unit @ row) / 0.4 for row in memory.vectors]
        q = [math.exp(x) / sum(math.exp(y) for y in q) for x in q]
        at = torch.stack([(candidates.vectors[each] == row).all(dim=1) for row in memory.vectors]).int().argmax(dim=0)
        counts = torch.bincount(at, minlength=N)
        chi_square = sum((int(n) - draws * p) ** 2 / (draws * p) for n, p in zip(counts, q, strict=True))
        assert chi_square < 22.5  # the 0.999 quantile with 6 degrees of freedom
        log_q = torch.tensor(q, dtype=torch.float64).log() + math.log(draws)
        torch.testing.assert_close(candidates.log_q[each], log_q[at])
        torch.testing.assert_close(candidates.positives_log_q[each, 0], log_q[ids.repeat(2)[each]])
    positive, valid = candidates.masks()
    assert valid.all()  # a draw of the own row stays noise
    assert not positive.any()
    torch.testing.assert_close(candidates.positives, memory.vectors[ids.repeat(2)][:, None])
    assert not candidates.log_q.requires_grad


def test_near_draws_are_a_function_of_the_generator_and_of_each_query_its_own() -> None:
    memory, ids = bank(proximity=0.4, draws=30), torch.tensor([5, 5])
    query = queries(images=1).expand(1, 2, D)  # the same query twice
    ((_, first),), ((_, again),), ((_, other),) = (
        memory(query, None, ids, generator=seeded(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first.vectors, again.vectors)
    assert not torch.equal(first.vectors, other.vectors)
    assert not torch.equal(first.vectors[0], first.vectors[1])


def test_very_near_draws_stay_within_the_bank() -> None:
    """All of the probability lies on one row, and rounding must not lead past the last."""
    memory = bank(proximity=1e-3, draws=100)
    query = memory.vectors[None, [0, N - 1]].clone()
    ((_, candidates),) = memory(query, None, torch.tensor([0, N - 1]), generator=seeded(0))
    assert torch.equal(candidates.vectors, memory.vectors[[0, N - 1], None].expand(2, 100, D))
    assert candidates.log_q.isfinite().all()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_no_row_of_probability_zero(
    uniform: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = bank(proximity=1e-4, draws=2)
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, uniform, dtype=torch.float64))
    ((_, candidates),) = memory(memory.vectors[None, [3]].clone(), None, torch.tensor([3]))
    assert torch.equal(candidates.vectors, memory.vectors[3].expand(1, 2, D))


def test_errors_carry_the_numbers() -> None:
    for arguments in ({"num_ids": 1}, {"dim": 0}, {"draws": 0}, {"momentum": 1.0}, {"momentum": -0.1}):
        with pytest.raises(InputError, match="at least 2 rows, 1 dimension, 1 draw and a momentum in") as raised:
            Bank(**({"num_ids": N, "dim": D} | arguments))
        assert str(next(iter(arguments.values()))) in str(raised.value)
    with pytest.raises(InputError, match="a sampler of 8 ids does not fit a bank of 7 rows"):
        Bank(N, D, Uniform(8))
    with pytest.raises(InputError, match=r"proximity=0.5 must be positive, and takes the place of a sampler"):
        Bank(N, D, Uniform(N), proximity=0.5)
    with pytest.raises(InputError, match=r"proximity=0.0 must be positive"):
        Bank(N, D, proximity=0.0)
    ((asking, candidates),) = Bank(N, 5).double()(queries(), None, torch.arange(3))
    with pytest.raises(InputError, match="queries have 4 dimensions, candidates 5"):
        NCE(0.1).double()(asking, candidates)
