"""NCE and its family against loops and by hand, its log Z, and what it converges to. In float64, with gradients."""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contrast.candidates import ABSENT, Candidates
from contrast.errors import InputError
from contrast.heads import NCE, CosFace, Estimated, FixedBias, Learnable, LearnedBias, logistic_loss
from contrast.losses.logistic import log_partition
from contrast.negatives import Paired

S = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64)  # scores of 4 classes
Q = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)  # their noise
P = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)  # and their data


def rows(n: int, d: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def of_scores(scores: Tensor, data: list[int], noise: list[int], k: float) -> tuple[Tensor, Candidates]:
    """Queries for a dot product at temperature 1: each datum against the same noise, log_q = log(k q)."""
    at, drawn = torch.tensor(data), torch.tensor(noise)
    return scores.new_ones(len(data), 1), Candidates(
        scores[drawn][:, None],
        at,
        log_q=Q[drawn].log() + math.log(k),
        positives=scores[at][:, None, None],
        positives_log_q=Q[at][:, None].log() + math.log(k),
    )


def nce(log_z: float = 0.0, correction: bool = True) -> NCE:
    return NCE(1.0, cosine=False, bias=-log_z, correction=correction).double()


def assert_same(loss: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(loss, expected)
    for x in inputs:
        got, wanted = (torch.autograd.grad(y, x, retain_graph=True)[0] for y in (loss, expected))
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("correction", [True, False])
@pytest.mark.parametrize("cosine", [True, False])
def test_nce_is_its_definition(cosine: bool, correction: bool) -> None:
    """Gutmann and Hyvarinen 2010, eq. 3: -log h of the data, -log(1 - h) of the noise, h = p / (p + k q)."""
    query, answers, noise, t, bias, k = rows(4, seed=1), rows(4, seed=2), rows(3, seed=3), 0.5, -1.5, 3
    q = rows(7, 1, seed=4).detach().sigmoid()[:, 0]  # of the answers, then of the noise
    losses = []
    for i in range(4):
        total = query.new_zeros(())
        for j, (vector, data) in enumerate([(answers[i], True), *((noise[j], False) for j in range(3))]):
            lengths = query[i].norm() * vector.norm() if cosine else 1
            p = (query[i] @ vector / lengths / t + bias).exp()
            expected_count = k * q[i if data else 3 + j] if correction else 1
            h = p / (p + expected_count)
            total = total - torch.log(h if data else 1 - h)
        losses.append(total)
    log_q = q.log() + math.log(k)
    candidates = Candidates(
        noise, torch.arange(4), log_q=log_q[4:], positives=answers[:, None], positives_log_q=log_q[:4, None]
    )
    head = NCE(t, cosine, bias=bias, correction=correction).double()
    assert_same(head(query, candidates)[0].sum(), sum(losses), query, answers, noise)


@pytest.mark.parametrize(("log_z", "loss"), [(0.0, 3.914038), (2.440190, 1.654996), (math.log(4), 1.973872)])
def test_nce_by_hand(log_z: float, loss: float) -> None:
    """Class 0, k = 3 draws 1, 2, 1."""
    assert nce(log_z)(*of_scores(S, [0], [1, 2, 1], k=3))[0].item() == pytest.approx(loss, abs=1e-6)


def test_the_gradient_of_nce_by_hand() -> None:
    scores = S.clone().requires_grad_()
    head = NCE(1.0, cosine=False, bias=LearnedBias(0.0)).double()
    head(*of_scores(scores, [0], [1, 2, 1], k=3))[0].sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([-0.139713, 1.502526, 0.625, 0], abs=5e-7)
    assert -head.bias.value.grad.item() == pytest.approx(-1.987814, abs=5e-7)  # with respect to log Z


def test_log_k_belongs_to_the_correction() -> None:
    forgotten = nce()(*of_scores(S, [0], [1, 2, 1], k=1))[0].item()
    assert forgotten == pytest.approx(6.461800, abs=5e-7)  # not 3.914038


# every class as often as in 20 data, and as often as is expected of k draws: the mean is the expected loss
DATA = [0] * 10 + [1] * 5 + [2] * 3 + [3] * 2


def expected_noise(k: int) -> list[int]:
    return [c for c in range(4) for _ in range(round(k * Q[c].item()))]


@pytest.mark.parametrize(("k", "least"), [(10, 3.330239), (100, 5.587541), (10000, 10.187554)])
def test_the_expected_loss_is_least_at_the_distribution_of_the_data(k: int, least: float) -> None:
    scores = P.log().requires_grad_()
    loss = nce()(*of_scores(scores, DATA, expected_noise(k), k))[0].mean()
    assert loss.item() == pytest.approx(least, abs=1e-6)
    assert torch.autograd.grad(loss, scores)[0].abs().max() < 1e-12


@pytest.mark.parametrize(
    ("k", "gradient"),
    [
        (10, [-0.040355, 0.023813, 0.016061, 0.001395]),
        (100, [-0.044440, 0.025767, 0.017261, 0.001521]),
        (10000, [-0.044941, 0.026002, 0.017404, 0.001536]),
    ],
)
def test_the_gradient_nears_that_of_maximum_likelihood(k: int, gradient: list[float]) -> None:
    """Sum over w of k q / (m + k q) (m - p); of maximum likelihood m - p, with m the model (Mnih and Teh 2012)."""
    m = torch.tensor([1.0, 0.5, 0.0, -0.5], dtype=torch.float64).softmax(0)
    scores = m.log().requires_grad_()
    loss = nce()(*of_scores(scores, DATA, expected_noise(k), k))[0].mean()
    (got,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(got, k * Q / (m + k * Q) * (m - P))
    assert got.tolist() == pytest.approx(gradient, abs=1e-6)


def test_negative_sampling_by_hand() -> None:
    """Class 0 and three draws: without the correction, whatever log_q."""
    scores = torch.tensor([2.0, 1.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    query, one = of_scores(scores, [0], [1, 2, 3], k=3)
    loss = nce(correction=False)(query, one)[0].sum()
    assert loss.item() == pytest.approx(3.446599, abs=5e-7)
    (gradient,) = torch.autograd.grad(loss, scores, retain_graph=True)
    assert gradient.tolist() == pytest.approx([-0.119203, 0.731059, 0.5, 0.731059], abs=5e-7)
    without = nce()(query, Candidates(one.vectors, one.query_ids, positives=one.positives))[0].sum()
    assert_same(loss, without, scores)


def test_the_optimum_of_negative_sampling_is_not_log_p() -> None:
    k = 10
    scores = (P / (k * Q)).log().requires_grad_()  # Levy and Goldberg 2014, eq. 7
    loss = nce(correction=False)(*of_scores(scores, DATA, expected_noise(k), k))[0].mean()
    assert torch.autograd.grad(loss, scores)[0].abs().max() < 1e-12


def test_binary_cross_entropies_by_hand() -> None:
    positive, valid = torch.tensor([[True, False, False, False]]), torch.ones(1, 4, dtype=torch.bool)
    assert logistic_loss(S[None], positive, valid).item() == pytest.approx(2.446599, abs=5e-7)
    one = torch.tensor([[1.5]], dtype=torch.float64)
    assert logistic_loss(one, positive[:, :1], valid[:, :1]).item() == pytest.approx(0.201413, abs=5e-7)


def test_padding_and_queries_without_a_positive_by_hand() -> None:
    """Means over what counts .935210 and 1.846209; the third row is all noise."""
    scores = torch.tensor(
        [[1.1, -2.2, 3.3, -4.4], [-1.1, 2.2, -3.3, 4.4], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64, requires_grad=True
    )
    ids = torch.tensor([[0, 1, 1, 1], [0, 1, ABSENT, ABSENT], [1, 1, 1, 1]])
    candidates = Candidates(scores[:, :, None], torch.zeros(3, dtype=torch.long), ids)
    losses, counted = nce()(scores.new_ones(3, 1), candidates)
    assert counted.tolist() == [True, True, False]
    assert (losses / torch.tensor([4, 2, 1])).tolist() == pytest.approx([0.935210, 1.846209, 0], abs=5e-7)
    (gradient,) = torch.autograd.grad(losses.sum(), scores)
    assert gradient[1, 2:].abs().max() == 0
    assert gradient[2].abs().max() == 0


def test_memory_bank_by_hand() -> None:
    """Wu et al. 2018, eqs. 4 to 7: exp(s / T) of the row and of 3 draws from 8, Z from all four as in their code."""
    raised = torch.tensor([91910.580158, 17.411708, 0.239651, 72.654424], dtype=torch.float64)
    t, n, k = 0.07, 8, 3
    cosine = raised.log() * t
    assert cosine.tolist() == pytest.approx([0.8, 0.2, -0.1, 0.3], abs=1e-6)
    bank = torch.stack([cosine, (1 - cosine.square()).sqrt()], dim=1)
    log_q = torch.full((4,), math.log(k / n), dtype=torch.float64)
    candidates = Candidates(
        bank[1:], torch.tensor([0]), log_q=log_q[1:], positives=bank[None, :1], positives_log_q=log_q[None, :1]
    )
    head = NCE(t, bias=-math.log(n * raised.mean().item())).double()
    query = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    values = head.scores(query, candidates).values[0]
    assert values.tolist() == pytest.approx([0.286700, -8.284729, -12.570443, -6.856157], abs=2e-6)
    assert head(query, candidates)[0].item() == pytest.approx(0.561345, abs=1e-6)


def test_siglip_is_its_algorithm() -> None:
    """Zhai et al. 2023, algorithm 1, in loops."""
    image, text, n = rows(5, seed=1), rows(5, seed=2), 5
    t, b = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (10.0, -2.0))
    total = image.new_zeros(())
    for i, j in itertools.product(range(n), repeat=2):
        logit = image[i] @ text[j] / (image[i].norm() * text[j].norm()) * t + b
        total = total - F.logsigmoid((1 if i == j else -1) * logit)
    head = NCE(Learnable(0.1), bias=LearnedBias(-2.0)).double()
    ((query, candidates),) = Paired()(image[None], text[None], torch.arange(n))
    loss = head(query, candidates)[0].mean()
    assert_same(loss, total / n, image, text)
    by_temperature, by_bias = torch.autograd.grad(loss, [head.temperature.log_temperature, head.bias.value])
    by_t, by_b = torch.autograd.grad(total / n, [t, b])
    torch.testing.assert_close(by_temperature, -t.detach() * by_t)  # t = 1 / T
    torch.testing.assert_close(by_bias, by_b)


def test_a_learned_bias_finds_log_z() -> None:
    """Scores log p + 3: the expected loss is least at the bias -3."""
    head = NCE(1.0, cosine=False, bias=LearnedBias(-10.0)).double()
    query, candidates = of_scores(P.log() + 3, DATA, expected_noise(10), 10)
    minimise(lambda: head(query, candidates)[0].mean(), [head.bias.value])
    assert head.bias.value.item() == pytest.approx(-3, abs=1e-6)


def minimise(loss_of, parameters: list[Tensor]) -> None:
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=200, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("k", [1, 3])
def test_nce_recovers_the_normalised_distribution(k: int) -> None:
    """Free scores, the expected loss over every datum and every k draws: log p, with log Z = 0 by itself."""
    cases = list(itertools.product(range(4), repeat=1 + k))
    data, drawn = torch.tensor(cases)[:, 0], torch.tensor(cases)[:, 1:]
    chance = P[data] * Q[drawn].prod(dim=1)
    scores, head, log_q = torch.zeros(4, dtype=torch.float64, requires_grad=True), nce(), Q.log() + math.log(k)

    def expected_loss() -> Tensor:
        candidates = Candidates(
            scores[drawn][:, :, None],
            data,
            log_q=log_q[drawn],
            positives=scores[data][:, None, None],
            positives_log_q=log_q[data][:, None],
        )
        return (chance * head(scores.new_ones(len(cases), 1), candidates)[0]).sum()

    minimise(expected_loss, [scores])
    torch.testing.assert_close(scores.detach(), P.log(), rtol=0, atol=1e-5)
    assert scores.logsumexp(dim=0).item() == pytest.approx(0, abs=1e-5)


def test_the_estimate_of_z_is_unbiased() -> None:
    """Over every 2 draws of 4 classes, with its probability: the mean over queries of sum over classes of exp(s)."""
    query, table, t, k = rows(3).detach(), rows(4, seed=1).detach(), 0.5, 2
    expected = torch.stack([(F.cosine_similarity(q, table) / t).exp().sum() for q in query]).mean()
    total = query.new_zeros(())
    for sample in itertools.product(range(4), repeat=k):
        drawn, target = torch.tensor(sample), torch.tensor([0, 1, 2])
        head = NCE(t, bias=Estimated()).double()
        candidates = Candidates(
            table[drawn],
            target,
            log_q=Q[drawn].log() + math.log(k),
            positives=table[target][:, None],
            positives_log_q=Q[target][:, None].log() + math.log(k),
        )
        head(query, candidates)
        head.advance()
        total = total + Q[drawn].prod() * head.bias.log_z.exp()
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)


def told(bias: Estimated, log_estimates: list[float]) -> list[float]:
    """The Z in use at each step."""
    seen = []
    for estimate in log_estimates:
        bias.observe_log_z(torch.tensor(estimate))
        seen.append(math.exp(-bias().item()))
        bias.advance()
    return seen


def test_the_estimate_is_a_mean_and_then_an_exponential_mean() -> None:
    estimates = [5.0, 1.0, 300.0, 2.0, 7.0, 40.0]
    logs = [math.log(x) for x in estimates]
    bias = Estimated(momentum=0.9, warmup=3)
    mean = (5 + 1 + 300) / 3
    fourth = 0.9 * mean + 0.1 * 2
    fifth = 0.9 * fourth + 0.1 * 7
    expected = [5, 5, 3, mean, fourth, fifth]
    assert told(bias, logs) == pytest.approx(expected, rel=1e-5)
    assert math.exp(bias.log_z.item()) == pytest.approx(0.9 * fifth + 0.1 * 40, rel=1e-5)
    assert told(Estimated(momentum=0.0, warmup=1), logs) == pytest.approx([5, *estimates[:-1]], rel=1e-5)


@pytest.mark.parametrize("stop", [1, 4])
def test_the_estimate_goes_on_after_a_resume(stop: int) -> None:
    logs = [1.0, -2.0, 4.0, 0.5, 3.0, 2.0]
    whole, first, second = (Estimated(momentum=0.8, warmup=3) for _ in range(3))
    expected = told(whole, logs)
    assert told(first, logs[:stop]) == expected[:stop]
    second.load_state_dict(first.state_dict())
    assert told(second, logs[stop:]) == expected[stop:]


def test_a_batch_without_noise_estimates_nothing() -> None:
    bias = Estimated(warmup=1)
    for _ in range(2):
        head = NCE(1.0, bias=bias)
        losses, _ = head(
            torch.ones(1, 2), Candidates(torch.empty(0, 2), torch.tensor([0]), positives=torch.ones(1, 1, 2))
        )
        assert losses.item() == pytest.approx(math.log1p(math.exp(-1)), rel=1e-6)
        head.advance()
        assert (bias.log_z.item(), bias.steps.item()) == (0, 0)
    assert told(bias, [2.0]) == pytest.approx([math.exp(2)])


def test_looking_on_leaves_the_estimate_alone() -> None:
    head = NCE(0.5, bias=Estimated())
    query, candidates = rows(3).detach().float(), Candidates(rows(4, seed=1).detach().float(), torch.arange(3))
    before = {name: value.clone() for name, value in head.state_dict().items()}
    with torch.no_grad():
        head(query, candidates)
    head.eval()(query, candidates)
    head.train().describe(query, candidates)
    head.advance()
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


@pytest.mark.parametrize("bias", [FixedBias(-3.0), LearnedBias(-3.0)])
def test_log_z_is_logged(bias: FixedBias | LearnedBias) -> None:
    head, ids = NCE(0.5, bias=bias), torch.arange(3)
    query = rows(3).detach().float()
    assert head.describe(query, Candidates(query, ids, ids))["log_z"].item() == 3
    assert "bias.value" in head.state_dict()


def test_the_estimate_is_logged() -> None:
    head, ids = NCE(0.5, bias=Estimated()), torch.arange(3)
    query = rows(3).detach().float()
    candidates = Candidates(query, ids, ids)
    head(query, candidates)
    estimate = head.describe(query, candidates)["log_z"].item()
    each = [sum(math.exp(F.cosine_similarity(query[i], query[j], dim=0) / 0.5) for j in ids if i != j) for i in ids]
    assert estimate == pytest.approx(math.log(sum(each) / 3), rel=1e-5)
    head.advance()
    assert head.describe(query, candidates)["log_z"].item() == pytest.approx(estimate)


@pytest.mark.parametrize("scale", [0.0, 1.0, 65504.0])
def test_the_estimate_stays_finite(scale: float) -> None:
    """At temperature 0.005 exp of a score is beyond float32."""
    query = F.normalize(rows(4).detach()).mul(scale).half().requires_grad_()
    head, ids = NCE(0.005, bias=Estimated()), torch.tensor([0, 0, 1, 2])
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            losses, _ = head(
                query, Candidates(query, ids, ids, self_index=torch.arange(4), log_q=torch.full((4,), -9.0))
            )
        losses.sum().backward()
        head.advance()
        assert losses.isfinite().all()
        assert head.bias.log_z.isfinite()
    assert query.grad is not None
    assert query.grad.isfinite().all()


def test_bad_biases() -> None:
    with pytest.raises(InputError, match="a bias must be finite, got inf"):
        NCE(bias=math.inf)
    with pytest.raises(InputError, match=r"momentum in \[0, 1\) and warmup of 1 or more: 1, 100"):
        Estimated(momentum=1)
    with pytest.raises(InputError, match=r"0\.9, 0"):
        Estimated(momentum=0.9, warmup=0)


def poisson_samples(pi: Tensor) -> Iterator[tuple[float, Tensor]]:
    """Every sample of a Poisson draw with its probability."""
    for chosen in itertools.product([False, True], repeat=len(pi)):
        mask = torch.tensor(chosen)
        yield torch.where(mask, pi, 1 - pi).prod().item(), mask.nonzero().flatten()


def test_the_estimate_of_z_is_unbiased_under_poisson_draws_and_with_a_whole_table() -> None:
    """By exact enumeration of the samples, which leave out the query's own class."""
    class_scores = torch.tensor([0.3, -0.5, 1.0, 0.2], dtype=torch.float64)
    pi, z = torch.tensor([0.6, 0.2, 0.5, 0.9], dtype=torch.float64), class_scores.exp().sum()
    query, own = torch.ones(1, 1, dtype=torch.float64), torch.tensor([2])
    scoring = NCE(1.0, cosine=False).double().scoring()
    shared = {"positives": class_scores[own].view(1, 1, 1), "query_groups": own}
    expected = 0.0
    for probability, drawn in poisson_samples(pi):
        rules = {"excluded_groups": drawn, "log_q": pi[drawn].log(), "positives_log_q": pi[own].log()[:, None]}
        candidates = Candidates(class_scores[drawn][:, None], own, **shared, **rules)
        estimate, _ = log_partition(query, candidates, scoring)
        noise = bool((drawn != own).any())
        expected += probability * (estimate.exp().item() if noise else class_scores[own].exp().item())
    assert expected == pytest.approx(z.item(), rel=1e-9)
    whole = Candidates(class_scores[:, None], own, excluded_groups=torch.arange(4), **shared)
    assert log_partition(query, whole, scoring)[0].exp().item() == pytest.approx(z.item(), rel=1e-9)


def test_an_estimate_of_z_without_correction_is_refused() -> None:
    with pytest.raises(InputError, match="correction=true"):
        NCE(bias=Estimated(), correction=False)


def test_scores_are_read_without_writing() -> None:
    head = NCE(0.2, bias=Estimated())
    candidates = Candidates(rows(6).float(), torch.arange(3), log_q=torch.zeros(6), positives=rows(3)[:, None].float())
    head.scores(rows(3).float(), candidates)
    head.describe(rows(3).float(), candidates)
    assert head.bias.pending == []


def test_the_estimate_of_z_is_of_plain_scores() -> None:
    """The margin of the loss is not part of the model, and every class counts, the query's own included."""
    query, vectors, own = rows(4, seed=1), rows(7, seed=2), torch.tensor([3, 0, 6, 2])
    z = (F.normalize(query) @ F.normalize(vectors).T / 0.5).exp().sum(dim=1).mean()
    for tiled in (True, False):
        scoring = NCE(0.5, margin=CosFace(), tiled=tiled).double().scoring()
        table = Candidates(
            vectors, own, excluded_groups=torch.arange(7), query_groups=own, positives=vectors[own][:, None]
        )
        assert log_partition(query, table, scoring)[0].exp().item() == pytest.approx(z.item(), rel=1e-9)
