"""The class table: whole it is cross entropy, sampled its loss and its bias are those of the definition."""

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contrast.distributed import mean_counted
from contrast.errors import InputError
from contrast.heads import NCE, AdaptiveSoftmax, ArcFace, CosFace, InfoNCE
from contrast.negatives import Bank, InBatch, Paired, Queue, Source, Table, Targets, Tree
from contrast.samplers import LogUniform, Poisson, Uniform, Unigram

N, D = 6, 4


class Given(nn.Module):
    """A sampler whose draws are given."""

    def __init__(self, q: Sequence[float], draws: Sequence[int]) -> None:
        super().__init__()
        self.size, self.q, self.draws = len(q), torch.tensor(q, dtype=torch.float64), torch.tensor(draws)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        assert shape == self.draws.shape
        return self.draws

    def log_prob(self, ids: Tensor) -> Tensor:
        return self.q[ids].log()


class GivenPoisson(Poisson):
    """A Poisson sample that is given."""

    def __init__(self, pi: Sequence[float], drawn: Sequence[int]) -> None:
        super().__init__(pi)
        self.log_pi = torch.tensor(pi, dtype=torch.float64).log()
        self.drawn = torch.tensor(drawn, dtype=torch.long)

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        return self.drawn


def table(*args: object, num_ids: int = N, **kwargs: object) -> Table:
    torch.manual_seed(0)
    return Table(num_ids, D, *args, std=1.0, **kwargs).double()


def queries(views: int = 2, images: int = 3) -> tuple[Tensor, Tensor]:
    """Queries [P, B, D] and their classes, one of which is there twice."""
    torch.manual_seed(1)
    return torch.randn(views, images, D, dtype=torch.float64, requires_grad=True), torch.tensor([5, 0, 5])[:images]


def losses_of(head: nn.Module, negatives: Table, query: Tensor, ids: Tensor) -> Tensor:
    ((asking, candidates),) = negatives(query, None, ids)
    losses, counted = head.double()(asking, candidates)
    assert counted.all()
    return losses


def assert_same_with_gradients(losses: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(losses, expected)
    weights = torch.arange(1.0, 1 + len(losses)).double()  # every query's own
    got, wanted = (torch.autograd.grad(losses, inputs, weights), torch.autograd.grad(expected, inputs, weights))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


# --- every class


@pytest.mark.parametrize("cosine", [False, True])
def test_the_whole_table_is_cross_entropy(cosine: bool) -> None:
    negatives, (query, ids) = table(), queries()
    losses = losses_of(InfoNCE(0.7, cosine=cosine), negatives, query, ids)
    flat, vectors = query.flatten(0, 1), negatives.vectors
    scores = F.normalize(flat, dim=1) @ F.normalize(vectors, dim=1).T if cosine else flat @ vectors.T
    expected = F.cross_entropy(scores / 0.7, ids.repeat(2), reduction="none")
    assert_same_with_gradients(losses, expected, query, vectors)


@pytest.mark.parametrize("margin", ["cosface", "arcface"])
def test_a_margin_is_taken_from_the_true_class_alone(margin: str) -> None:
    negatives, (query, ids) = table(), queries()
    module = CosFace(0.35) if margin == "cosface" else ArcFace(0.5)
    losses = losses_of(InfoNCE(0.2, margin=module), negatives, query, ids)
    expected = []
    for q, y in zip(query.flatten(0, 1), ids.repeat(2).tolist(), strict=True):
        cosines = [(q @ w) / (q.norm() * w.norm()) for w in negatives.vectors]
        if margin == "cosface":
            cosines[y] = cosines[y] - 0.35
        elif cosines[y].acos() < math.pi - 0.5:
            cosines[y] = torch.cos(cosines[y].acos() + 0.5)
        else:
            cosines[y] = cosines[y] - 0.5 * math.sin(0.5)
        scores = torch.stack(cosines) / 0.2
        expected.append(-(scores[y].exp() / scores.exp().sum()).log())
    assert_same_with_gradients(losses, torch.stack(expected), query, negatives.vectors)


def test_logistic_regression_is_the_case_of_two_classes() -> None:
    negatives, (query, _) = table(num_ids=2), queries()
    ids = torch.tensor([1, 0, 1])
    losses = losses_of(InfoNCE(1.0, cosine=False), negatives, query, ids)
    score = query.flatten(0, 1) @ (negatives.vectors[1] - negatives.vectors[0])
    expected = F.binary_cross_entropy_with_logits(score, ids.repeat(2).double(), reduction="none")
    assert_same_with_gradients(losses, expected, query, negatives.vectors)


# --- sampled


def by_hand(sampler: nn.Module, head: nn.Module, draws: int = 3) -> float:
    """The loss of scores 2, 1, 0, -1, class 0 the true one."""
    negatives = Table(4, 1, sampler, draws=draws).double()
    negatives.vectors.data[:, 0] = torch.tensor([2.0, 1.0, 0.0, -1.0])
    return losses_of(head, negatives, torch.ones(1, 1, 1, dtype=torch.float64), torch.tensor([0])).item()


def test_by_hand() -> None:
    q = [0.4, 0.3, 0.2, 0.1]
    softmax, nce = InfoNCE(1.0, cosine=False), NCE(1.0, cosine=False)
    assert by_hand(Given(q, [1, 2, 1]), softmax) == pytest.approx(0.811678, abs=5e-7)  # scores less log(3 q)
    assert by_hand(Given(q, [1, 0, 2]), softmax) == pytest.approx(1.015657, abs=5e-7)  # an accidental hit is noise
    assert by_hand(GivenPoisson(q, [0, 1, 2]), softmax) == pytest.approx(0.565982, abs=5e-7)  # and is none here
    assert by_hand(Given(q, [1, 2, 1]), nce) == pytest.approx(3.914038, abs=5e-7)
    fixed = NCE(1.0, cosine=False, bias=-2.440190)
    assert by_hand(Given(q, [1, 2, 1]), fixed) == pytest.approx(1.654996, abs=5e-7)
    sgns = NCE(1.0, cosine=False, correction=False)
    assert by_hand(Given(q, [1, 2, 1]), sgns) == pytest.approx(3.446599, abs=5e-7)  # negative sampling


def naive_sampled(
    q: Tensor, vectors: Tensor, y: int, noise: Sequence[int], log_q: Sequence[float], nce: bool
) -> Tensor:
    """Softmax over, or the logistic loss of, the true class and the noise, all scored q . w - log_q."""
    true, *rest = (q @ vectors[c] - log_q[c] for c in (y, *noise))
    if nce:
        return -torch.sigmoid(true).log() - sum(torch.sigmoid(-s).log() for s in rest)
    return torch.stack([true, *rest]).exp().sum().log() - true


@pytest.mark.parametrize("nce", [False, True])
@pytest.mark.parametrize("sampler", [Uniform(N), LogUniform(N), Unigram([5, 4, 9, 1, 1, 7])])
def test_draws_with_replacement(sampler: nn.Module, nce: bool) -> None:
    negatives, (query, ids) = table(sampler, draws=8), queries()
    ((asking, candidates),) = negatives(query, None, ids, generator=torch.Generator().manual_seed(3))
    drawn = sampler.draw((8,), torch.Generator().manual_seed(3)).tolist()
    assert {0, 5} & set(drawn)  # the own class of some
    head = (NCE if nce else InfoNCE)(1.0, cosine=False).double()
    log_q = (sampler.log_prob(torch.arange(N)).double() + math.log(8)).tolist()
    expected = [
        naive_sampled(q, negatives.vectors, y, drawn, log_q, nce)
        for q, y in zip(query.flatten(0, 1), ids.repeat(2).tolist(), strict=True)
    ]
    losses, _ = head(asking, candidates)
    assert_same_with_gradients(losses, torch.stack(expected), query, negatives.vectors)


@pytest.mark.parametrize("nce", [False, True])
def test_a_poisson_sample(nce: bool) -> None:
    sampler = Poisson(LogUniform(N), 3.0)
    for seed in range(5):
        negatives, (query, ids) = table(sampler), queries()
        ((asking, candidates),) = negatives(query, None, ids, generator=torch.Generator().manual_seed(seed))
        drawn = sampler.draw(torch.Generator().manual_seed(seed)).tolist()
        head = (NCE if nce else InfoNCE)(1.0, cosine=False).double()
        log_pi = sampler.log_inclusion(torch.arange(N)).double().tolist()
        expected = [
            naive_sampled(q, negatives.vectors, y, [c for c in drawn if c != y], log_pi, nce)
            for q, y in zip(query.flatten(0, 1), ids.repeat(2).tolist(), strict=True)
        ]
        losses, counted = head(asking, candidates)
        assert counted.all()
        assert_same_with_gradients(losses, torch.stack(expected), query, negatives.vectors)


def test_an_empty_poisson_sample_gives_the_loss_zero() -> None:
    negatives, (query, ids) = table(GivenPoisson([0.5] * N, [])), queries()
    losses = losses_of(InfoNCE(1.0, cosine=False), negatives, query, ids)
    losses.sum().backward()
    assert losses.tolist() == [0] * 6
    assert query.grad.abs().max() == 0
    assert negatives.vectors.grad.abs().max() == 0


@pytest.mark.parametrize("sampler", [Given([1 / N] * N, [1, 3, 3]), GivenPoisson([0.5] * N, [1, 3])])
def test_only_drawn_and_true_classes_get_a_gradient(sampler: nn.Module) -> None:
    negatives, (query, ids) = table(sampler, draws=3), queries()
    losses_of(InfoNCE(1.0, cosine=False), negatives, query, ids).sum().backward()
    touched = negatives.vectors.grad.abs().sum(dim=1) > 0
    assert touched.nonzero().flatten().tolist() == [0, 1, 3, 5]


def test_all_queries_share_the_draws_and_the_generator_decides_them() -> None:
    negatives, (query, ids) = table(LogUniform(N), draws=20), queries()
    drawn = [negatives(query, None, ids, generator=torch.Generator().manual_seed(s))[0][1].vectors for s in (0, 0, 1)]
    assert drawn[0].shape == (20, D)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


# --- the bias of a sampled softmax, exactly: over every sample there is, weighted by its probability

SMALL = [0.5, 0.3, 0.2]  # q


def small_gradient(sampler: nn.Module | None, draws: int = 1) -> Tensor:
    """Gradient of the loss of class 0 to the scores 1, -0.5, 0.3 of three classes."""
    negatives = Table(3, 1, sampler, draws).double()
    negatives.vectors.data[:, 0] = torch.tensor([1.0, -0.5, 0.3])
    loss = losses_of(InfoNCE(1.0, cosine=False), negatives, torch.ones(1, 1, 1, dtype=torch.float64), torch.tensor([0]))
    return torch.autograd.grad(loss.sum(), negatives.vectors)[0].flatten()


def test_the_bias_of_draws_with_replacement_falls_with_their_number() -> None:
    full, biases = small_gradient(None), []
    for draws in (1, 2, 4, 8, 16):
        mean = torch.zeros(3, dtype=torch.float64)
        for sample in itertools.combinations_with_replacement(range(3), draws):
            counts = [sample.count(c) for c in range(3)]
            ways = math.factorial(draws) / math.prod(math.factorial(n) for n in counts)
            probability = ways * math.prod(q**n for q, n in zip(SMALL, counts, strict=True))
            mean += probability * small_gradient(Given(SMALL, sample), draws)
        biases.append((mean - full).norm().item())
    assert all(later < 0.75 * earlier for earlier, later in itertools.pairwise(biases)), biases
    assert biases[-1] / biases[-2] == pytest.approx(0.5, abs=0.05)  # in the end as 1 / K


def test_the_bias_of_a_poisson_sample_falls_with_its_length_to_nothing() -> None:
    full, biases = small_gradient(None), []
    for expected in (0.5, 1.0, 1.8, 3.0):
        pi = Poisson(Unigram(SMALL, power=1), expected).log_pi.double().exp().clamp(max=1).tolist()
        mean = torch.zeros(3, dtype=torch.float64)
        for size in range(4):
            for sample in itertools.combinations(range(3), size):
                probability = math.prod(pi[c] if c in sample else 1 - pi[c] for c in range(3))
                if probability:
                    mean += probability * small_gradient(GivenPoisson(pi, sample))
        biases.append((mean - full).norm().item())
    assert all(later < 0.75 * earlier for earlier, later in itertools.pairwise(biases)), biases
    assert biases[-1] == pytest.approx(0, abs=1e-7)  # every class is in every sample: the full softmax


# --- adaptive softmax


def test_targets_give_an_adaptive_softmax_its_classes() -> None:
    torch.manual_seed(2)
    head, query, ids = AdaptiveSoftmax(D, 9, [2, 5], div_value=2.0), torch.randn(2, 4, D), torch.tensor([0, 8, 3, 2])
    ((asking, candidates),) = Targets()(query.requires_grad_(), query.roll(1, 0), ids, ids, torch.Generator())
    losses, counted = head(asking, candidates)
    assert counted.tolist() == [True] * 8
    log_p = head.log_prob(query.flatten(0, 1))
    torch.testing.assert_close(log_p.exp().sum(dim=1), torch.ones(8))
    expected = -log_p[torch.arange(8), ids.repeat(2)]
    torch.testing.assert_close(losses, expected)
    got, wanted = (torch.autograd.grad(x.mean(), query)[0] for x in (losses, expected))
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(mean_counted(losses, counted), expected.mean())
    assert head.describe(asking, candidates) == {}
    for step in (lambda: head.plan(10), head.advance, lambda: Targets().update(query, None, ids)):
        step()


def test_errors_carry_the_numbers() -> None:
    for arguments in ({"num_ids": 1}, {"dim": 0}, {"draws": 0}):
        numbers = {"num_ids": N, "dim": D, "draws": 3} | arguments
        said = ", ".join(map(str, numbers.values()))
        with pytest.raises(InputError, match=f"2 classes, 1 dimension and 1 draw at least: {said}"):
            Table(**numbers)
    for sampler in (Uniform(7), Poisson([0.5] * 7)):
        with pytest.raises(InputError, match="a sampler of 7 ids does not fit a table of 6 classes"):
            Table(N, D, sampler)


@pytest.mark.parametrize("source", [lambda: Table(5, 3), lambda: Bank(5, 3), lambda: Tree(torch.arange(1, 6), 3)])
@pytest.mark.parametrize("ids", [[0, -1], [5, 1]])
def test_ids_that_are_no_rows_are_refused(source: Callable[[], Source], ids: list[int]) -> None:
    """-1 would be the last row, with a finite and wrong loss."""
    query = torch.randn(1, 2, 3)
    with pytest.raises(InputError, match=r"rows 0\.\.4"):
        source()(query, query, torch.tensor(ids))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.float32])
def test_ids_of_any_type_of_whole_numbers(dtype: torch.dtype) -> None:
    query = torch.randn(2, 4, 3)
    ids = torch.tensor([0, 1, 0, 2])
    for source in (InBatch(), Paired(), Queue(8, 3), Bank(3, 3), Table(3, 3)):
        losses = [InfoNCE(0.2)(*source(query, query, each)[0])[0] for each in (ids, ids.to(dtype))]
        torch.testing.assert_close(*losses)
