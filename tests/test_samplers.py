"""Noise samplers: probabilities by hand, frequencies of draws, the tables behind them, and what a resume restores.

Frequencies are compared by chi-square at fixed seeds; the numbers of draws are such that the wrong distributions named
beside them fail.
"""

import copy
import math
import random

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn

from contrast.errors import InputError
from contrast.samplers import Alias, LogUniform, Poisson, Sampler, Uniform, Unigram, alias_table, inclusion
from contrast.samplers.contract import uniforms
from contrast.samplers.uniform import inverse_cdf

COUNTS = [100, 50, 10, 1]
TIES = [3, 1, 1, 3, 2, 2]  # columns that are full before the next is begun
SAMPLERS = {
    "uniform": lambda: Uniform(7),
    "log_uniform": lambda: LogUniform(10),
    "unigram": lambda: Unigram([100, 0, 50, 10, 0, 1]),
    "one class": lambda: Unigram([3]),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def probabilities(sampler: Sampler) -> np.ndarray:
    return sampler.log_prob(torch.arange(sampler.size)).double().exp().numpy()


def p_value(draws: Tensor, expected: np.ndarray) -> float:
    """Of the chi-square test that the draws come from `expected`; 0 if a class of probability 0 was drawn."""
    seen = np.bincount(draws.flatten().numpy(), minlength=len(expected))
    possible = expected > 0
    if seen[~possible].any():
        return 0.0
    if possible.sum() == 1:
        return 1.0
    share = expected[possible] / expected[possible].sum()  # log_prob is float32
    return float(chisquare(seen[possible], share * draws.numel()).pvalue)


def vose(weights: list[float]) -> tuple[list[float], list[int]]:
    """Vose (1991), with his two lists as stacks: the column just taken from the heavy list goes back on top."""
    p = [len(weights) * weight / math.fsum(weights) for weight in weights]
    accept, alias = [1.0] * len(p), list(range(len(p)))
    small = [i for i in range(len(p)) if p[i] < 1]
    large = [i for i in range(len(p)) if p[i] >= 1]
    while small and large:
        i, j = small.pop(), large.pop()
        accept[i], alias[i] = p[i], j
        p[j] -= 1 - p[i]
        (small if p[j] < 1 else large).append(j)
    return accept, alias


def recovered(accept: np.ndarray, alias: np.ndarray) -> np.ndarray:
    """q of every class from an alias table of N columns: (accept + what other columns give it) / N."""
    share = accept.copy()
    np.add.at(share, alias, 1 - accept)
    return share / len(accept)


# ---- probabilities


def test_log_uniform_probabilities_by_hand() -> None:
    # P(k) = log((k + 2) / (k + 1)) / log(N + 1), N = 10
    expected = [0.289065, 0.169092, 0.119973, 0.093058, 0.076034, 0.064286, 0.055687, 0.049119, 0.043939, 0.039747]
    assert probabilities(LogUniform(10)) == pytest.approx(expected, abs=1e-6)
    counts = 4 * probabilities(LogUniform(10))[:4]  # expected counts of 4 draws with replacement, k P
    assert counts == pytest.approx([1.156259, 0.676368, 0.479891, 0.372232], abs=1e-6)


@pytest.mark.parametrize(
    ("counts", "power", "expected"),
    [
        ([4, 0, 1], -0.5, [1 / 3, 0, 2 / 3]),  # rare classes are drawn more often
        (COUNTS, 0.75, [0.554307, 0.329593, 0.098571, 0.017529]),  # counts^power / sum
        (COUNTS, 0.5, [0.470957, 0.333017, 0.148930, 0.047096]),
        (COUNTS, 1, [100 / 161, 50 / 161, 10 / 161, 1 / 161]),
        ([4, 0, 2.5, 0], 0, [0.5, 0, 0.5, 0]),
    ],
)
def test_unigram_probabilities_by_hand(counts: list[float], power: float, expected: list[float]) -> None:
    assert probabilities(Unigram(counts, power)) == pytest.approx(expected, abs=1e-6)


def test_the_correction_of_nce_by_hand() -> None:
    # s - log(k q) with s = [2, 1, 0, -1], q = [.4, .3, .2, .1], k = 3
    log_q = Unigram([4, 3, 2, 1], power=1).log_prob(torch.arange(4))
    delta = torch.tensor([2.0, 1.0, 0.0, -1.0]) - (math.log(3) + log_q)
    assert delta.tolist() == pytest.approx([1.817678, 1.105361, 0.510826, 0.203973], abs=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_probabilities_sum_to_one_and_have_the_shape_of_the_ids(name: str) -> None:
    sampler = SAMPLERS[name]()
    assert isinstance(sampler, Sampler)
    assert probabilities(sampler).sum() == pytest.approx(1, abs=1e-6)
    log_q = sampler.log_prob(torch.zeros(2, 3, dtype=torch.int64))
    assert (log_q.shape, log_q.dtype) == ((2, 3), torch.float32)
    assert sampler.log_prob(torch.zeros((), dtype=torch.int64)).shape == ()


def test_log_probabilities_of_large_vocabularies_keep_their_digits() -> None:
    size = 2_000_000
    for k in (0, 1, 999_999, size - 1):
        exact = math.log(math.log1p(1 / (k + 1)) / math.log(size + 1))
        assert LogUniform(size).log_prob(torch.tensor(k)).item() == pytest.approx(exact, rel=2e-7)
    assert Uniform(size).log_prob(torch.tensor([5])).item() == pytest.approx(-math.log(size), rel=1e-7)


# ---- draws


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_follow_the_probabilities(name: str) -> None:
    sampler = SAMPLERS[name]()
    draws = sampler.draw((400, 250), seeded())
    assert (draws.shape, draws.dtype) == ((400, 250), torch.int64)
    assert p_value(draws, probabilities(sampler)) > 1e-3


def test_the_chi_square_test_would_notice() -> None:
    draws = Unigram(COUNTS).draw((100_000,), seeded())
    assert p_value(draws, probabilities(Unigram(COUNTS, power=0.8))) < 1e-6
    draws = LogUniform(10).draw((100_000,), seeded())
    assert p_value(draws, 1 / np.arange(1, 11) / sum(1 / n for n in range(1, 11))) < 1e-6  # Zipf's law itself
    assert p_value(Uniform(7).draw((100,), seeded()), np.array([0.5, 0.5, 0, 0, 0, 0, 0])) == 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_are_independent_of_each_other(name: str) -> None:
    sampler = SAMPLERS[name]()
    pairs = sampler.draw((50_000, 2), seeded(1))
    q = probabilities(sampler)
    assert p_value(pairs[:, 0] * sampler.size + pairs[:, 1], np.outer(q, q).flatten()) > 1e-3


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_generator_determines_the_draws(name: str) -> None:
    sampler = SAMPLERS[name]()
    assert torch.equal(sampler.draw((50,), seeded(3)), sampler.draw((50,), seeded(3)))
    torch.manual_seed(3)
    assert torch.equal(sampler.draw((50,)), sampler.draw((50,), seeded(3)))
    generator = seeded(3)
    together = torch.cat([sampler.draw((200,), generator) for _ in range(2)])
    assert name == "one class" or not torch.equal(together[:200], together[200:])
    assert sampler.draw((0, 4), generator).shape == (0, 4)
    assert sampler.draw((), generator).shape == ()


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    for make in SAMPLERS.values():
        make().draw((5,), seeded())
    Poisson(LogUniform(10), 3).draw(seeded())
    assert torch.equal(torch.get_rng_state(), before)


# ---- log-uniform: the inverse of the distribution function


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1000, 65_535, 2_000_000, 2**24 + 1, 2**31])
def test_log_uniform_stays_in_range_at_the_ends(size: int) -> None:
    ends = torch.tensor([0.0, 2.0**-53, 1 - 2.0**-53, 1.0], dtype=torch.float64)
    assert inverse_cdf(ends, size).tolist() == [0, 0, size - 1, size - 1]


def test_log_uniform_stays_in_range_at_every_small_size() -> None:
    last = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    assert all(inverse_cdf(last, size).item() == size - 1 for size in range(1, 3000))


@pytest.mark.parametrize("size", [10, 2_000_000])
def test_log_uniform_inverts_its_distribution_function(size: int) -> None:
    # F(k) = log(k + 2) / log(N + 1): just below F(k) lies class k, just above it class k + 1
    k = torch.arange(size - 1) if size < 100 else torch.randint(size - 1, (2000,), generator=seeded())
    above = (k + 2).double().log() / math.log(size + 1)
    assert torch.equal(inverse_cdf(above - 1e-12, size), k)
    assert torch.equal(inverse_cdf(above + 1e-12, size), k + 1)


def test_log_uniform_over_a_large_vocabulary() -> None:
    size = 2_000_000
    draws = LogUniform(size).draw((200_000,), seeded())
    assert 0 <= draws.min() < draws.max() < size
    edges = [0, 1, 2, 5, 20, 100, 1000, 10_000, 100_000, 1_000_000, 1_500_000, size]
    shares = np.diff([math.log(edge + 1) / math.log(size + 1) for edge in edges])
    assert p_value(torch.bucketize(draws, torch.tensor(edges[1:-1]), right=True), shares) > 1e-3


def test_random_numbers_have_all_their_bits() -> None:
    # the 24 bits of float32 would pass over classes of a large vocabulary
    whole = uniforms((1000,), seeded(), torch.device("cpu")) * 2**53
    assert torch.equal(whole, whole.floor())
    assert 400 < (whole.long() % 2).sum() < 600


# ---- the alias table


def test_alias_table_by_hand() -> None:
    accept, alias = alias_table(np.array(COUNTS) ** 0.75)
    assert accept == pytest.approx([1, 0.388487, 0.394285, 0.070115], abs=1e-6)
    assert alias.tolist() == [0, 0, 0, 1]
    weights = np.array(COUNTS) ** 0.75
    assert recovered(accept, alias) == pytest.approx(weights / weights.sum(), abs=1e-15)


@pytest.mark.parametrize("seed", range(30))
def test_alias_table_is_that_of_the_plain_algorithm(seed: int) -> None:
    rng = random.Random(seed)
    weights = [rng.paretovariate(rng.choice([0.5, 1, 3])) * (rng.random() < 0.8) for _ in range(rng.randint(2, 60))]
    weights.append(1.0)
    accept, alias = alias_table(np.array(weights))
    plain_accept, plain_alias = vose(weights)
    assert accept == pytest.approx(plain_accept, abs=1e-12)
    for i, (own, plain) in enumerate(zip(alias, plain_alias, strict=True)):
        assert own == plain or accept[i] == pytest.approx(1, abs=1e-12)  # a full column needs no alias
    assert recovered(accept, alias) == pytest.approx(np.array(weights) / math.fsum(weights), abs=1e-14)


@pytest.mark.parametrize("seed", range(20))
def test_alias_table_of_small_counts_recovers_them(seed: int) -> None:
    rng = random.Random(seed)
    weights = np.array([1] + [rng.randint(0, 4) for _ in range(rng.randint(1, 31))])  # ties at every turn
    assert recovered(*alias_table(weights)) == pytest.approx(weights / weights.sum(), abs=1e-14)


@pytest.mark.parametrize("weights", [[2.0], [1, 1, 1], [0.1] * 7, [1, 0], [0, 0, 5, 0], [1e-300, 1e300], TIES])
def test_alias_table_of_ties_zeros_and_extremes(weights: list[float]) -> None:
    accept, alias = alias_table(np.array(weights))
    assert ((accept >= 0) & (accept <= 1)).all()
    assert recovered(accept, alias) == pytest.approx(np.array(weights) / sum(weights), abs=1e-15)
    zero = np.array(weights) == 0
    assert (accept[zero] == 0).all()
    assert not zero[alias[accept < 1]].any()


def test_a_large_alias_table_recovers_its_weights() -> None:
    counts = np.round(1e7 / np.arange(1, 1_000_001))
    counts[::3] = 0
    accept, alias = alias_table(counts**0.75)
    np.testing.assert_allclose(recovered(accept, alias), counts**0.75 / (counts**0.75).sum(), rtol=1e-7, atol=0)


def test_a_class_never_counted_is_never_drawn() -> None:
    sampler = Unigram([0, 1, 0, 1e-9, 1000, 0])
    ids = torch.arange(6)
    assert sampler.log_prob(ids).isneginf().tolist() == [True, False, True, False, False, True]
    assert set(sampler.draw((100_000,), seeded()).tolist()) <= {1, 3, 4}


def test_random_numbers_at_the_edges_of_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    # 4 q = [0, 1.6, 0, 2.4]: class 3 fills columns 2 and 0, which leaves it 0.4, and class 1 fills column 3
    sampler = Alias([0, 2, 0, 3])
    assert sampler.accept.tolist() == pytest.approx([0, 1, 0, 0.4])
    assert sampler.alias.tolist() == [3, 1, 3, 1]
    position = torch.tensor([0, 1, 2, 3, 3.3999, 3.4001, 4 * (1 - 2.0**-53)], dtype=torch.float64)
    monkeypatch.setattr("contrast.samplers.alias.uniforms", lambda *_: position / 4)
    assert sampler.draw((7,)).tolist() == [3, 1, 3, 3, 3, 1, 1]


# ---- Poisson sampling


@pytest.mark.parametrize(
    ("expected", "pi"),
    [  # min(1, c q) with q = [.3, .1, .4, 0, .2]
        (0.5, [0.15, 0.05, 0.2, 0, 0.1]),
        (2, [0.6, 0.2, 0.8, 0, 0.4]),
        (2.5, [0.75, 0.25, 1, 0, 0.5]),
        (2.8, [0.9, 0.3, 1, 0, 0.6]),  # one class at 1, c = 1.8 / 0.6
        (3, [1, 1 / 3, 1, 0, 2 / 3]),
        (3.5, [1, 0.5, 1, 0, 1]),
        (4, [1, 1, 1, 0, 1]),
    ],
)
def test_inclusion_by_hand(expected: float, pi: list[float]) -> None:
    log_q = torch.tensor([0.3, 0.1, 0.4, 0.0, 0.2], dtype=torch.float64).log()
    assert inclusion(log_q, expected).tolist() == pytest.approx(pi, abs=1e-12)
    assert inclusion(Unigram([3, 1, 4, 0, 2], power=1), expected).tolist() == pytest.approx(pi, abs=1e-6)


@pytest.mark.parametrize("expected", [0.3, 1, 17, 120.5, 199, 200])
def test_inclusion_is_capped_proportion_and_sums_to_the_expected_number(expected: float) -> None:
    q = torch.rand(200, generator=seeded(), dtype=torch.float64) ** 4
    pi = inclusion((q / q.sum()).log(), expected)
    assert pi.sum().item() == pytest.approx(expected, rel=1e-12)
    ratio = pi / q
    c = ratio.max().item()
    torch.testing.assert_close(pi, (c * q).clamp(max=1), rtol=1e-9, atol=0)


def test_inclusion_of_uniform_noise_and_of_every_class() -> None:
    assert inclusion(Uniform(8), 2).tolist() == [0.25] * 8
    q = torch.tensor([2, 5, 2, 4, 2], dtype=torch.float64) / 15
    assert inclusion(q.log(), 5).tolist() == [1] * 5  # not 1 - 1e-16, whose rate is 37


def test_the_points_of_a_poisson_draw_give_the_inclusion_probabilities() -> None:
    pi = torch.tensor([0.3, 0.0, 1.0, 0.999, 1e-9, 0.5, 0.05], dtype=torch.float64)
    sampler = Poisson(pi)
    points = sampler.rate.item() * recovered(sampler.points.accept.double().numpy(), sampler.points.alias.numpy())
    hit = -np.expm1(-points)  # at least one point falls on the class
    hit[2] = 1
    assert sampler.always.tolist() == [2]
    assert hit == pytest.approx(pi.numpy(), rel=1e-6, abs=0)
    assert sampler.log_inclusion(torch.arange(7)).tolist() == pytest.approx(pi.log().tolist(), rel=1e-6)


def test_poisson_inclusions_have_their_frequencies_and_are_independent() -> None:
    size, count = 12, 6000
    sampler = Poisson(LogUniform(size), 5.0)
    pi = sampler.log_inclusion(torch.arange(size)).double().exp()
    assert pi.sum().item() == pytest.approx(5, abs=1e-5)
    assert 0 < len(sampler.always) < 3
    generator = seeded()
    seen = torch.zeros(count, size, dtype=torch.float64)
    for row in seen:
        ids = sampler.draw(generator)
        assert ids.dtype == torch.int64
        assert ids.tolist() == sorted(set(ids.tolist()))
        row[ids] = 1
    partial = pi < 1
    assert (seen[:, ~partial] == 1).all()
    seen, pi = seen[:, partial], pi[partial]
    standard = (seen - pi) / (pi * (1 - pi)).sqrt()  # mean 0, variance 1, uncorrelated
    assert (standard.mean(0) * math.sqrt(count)).abs().max() < 4.5
    correlation = standard.T @ standard / count
    assert (correlation - correlation.diag().diag()).abs().max() * math.sqrt(count) < 4.5
    # a fixed number of draws without replacement would correlate the classes: lengths vary by the sum of pi (1 - pi)
    assert seen.sum(1).var().item() == pytest.approx((pi * (1 - pi)).sum().item(), rel=0.08)


def test_poisson_draws_at_the_ends() -> None:
    assert Poisson([1.0, 0.0, 1.0]).draw(seeded()).tolist() == [0, 2]
    everything = Poisson(Unigram([2, 5, 0, 2, 4, 2], power=1), 5)
    assert everything.always.tolist() == everything.draw(seeded()).tolist() == [0, 1, 3, 4, 5]
    empty = Poisson([1e-12, 1e-12]).draw(seeded())
    assert (empty.shape, empty.dtype) == ((0,), torch.int64)
    sampler = Poisson(LogUniform(100_000), 200)
    assert torch.equal(sampler.draw(seeded(1)), sampler.draw(seeded(1)))
    assert not torch.equal(sampler.draw(seeded(1)), sampler.draw(seeded(2)))
    lengths = [len(sampler.draw(seeded(seed))) for seed in range(50)]
    assert sum(lengths) / 50 == pytest.approx(200, abs=4 * math.sqrt(200 / 50))


# ---- state and errors


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda: Unigram([100, 0, 50, 10]), lambda: Unigram([1, 1, 1, 1])),
        (lambda: Poisson([0.5, 0.1, 1.0, 0.2]), lambda: Poisson([0.2, 1.0, 0.3, 0.9])),
        (lambda: Uniform(9), lambda: Uniform(9)),
        (lambda: LogUniform(9), lambda: LogUniform(9)),
    ],
)
def test_the_state_dict_carries_the_noise(make, other) -> None:
    kept, resumed = make(), nn.ModuleDict({"sampler": other()})
    resumed.load_state_dict(nn.ModuleDict({"sampler": copy.deepcopy(kept)}).state_dict())
    resumed = resumed["sampler"]
    ids = torch.arange(kept.size)
    if isinstance(kept, Poisson):
        assert torch.equal(resumed.log_inclusion(ids), kept.log_inclusion(ids))
        assert all(torch.equal(resumed.draw(seeded(s)), kept.draw(seeded(s))) for s in range(5))
    else:
        assert torch.equal(resumed.log_prob(ids), kept.log_prob(ids))
        assert torch.equal(resumed.draw((100,), seeded()), kept.draw((100,), seeded()))


@pytest.mark.parametrize("kind", [Uniform, LogUniform])
def test_another_number_of_classes_is_refused(kind: type) -> None:
    with pytest.raises(InputError, match="over 9 classes cannot resume one over 12"):
        nn.ModuleList([kind(9)]).load_state_dict(nn.ModuleList([kind(12)]).state_dict())


def test_a_unigram_of_another_size_is_refused() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        Unigram([1, 2]).load_state_dict(Unigram([1, 2, 3]).state_dict())


@pytest.mark.parametrize("kind", [Uniform, LogUniform])
@pytest.mark.parametrize("size", [0, -3])
def test_a_sampler_needs_a_class(kind: type, size: int) -> None:
    with pytest.raises(InputError, match=f"at least 1 class, got {size}"):
        kind(size)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([1, -2, 3], r"counts .* class 1 of 3 has -2\.0"),
        ([1, 2, math.nan], r"counts .* class 2 of 3 has nan"),
        ([math.inf, 2], r"counts .* class 0 of 2 has inf"),
        ([0, 0, 0, 0], "all 4 classes are"),
        ([], r"at least 1 class, got shape \[0\]"),
        ([[1, 2], [3, 4]], r"got shape \[2, 2\]"),
    ],
)
@pytest.mark.parametrize("form", [list, np.array, torch.tensor])
def test_bad_counts(counts: list, message: str, form) -> None:
    with pytest.raises(InputError, match=message):
        Unigram(form(counts))


def test_bad_powers_and_weights() -> None:
    for power in (-math.inf, math.nan, math.inf):
        with pytest.raises(InputError, match=f"got {power}"):
            Unigram([1, 2], power)
    with pytest.raises(InputError, match=r"weights .* class 1 of 2 has -1\.0"):
        Alias(np.array([1.0, -1.0]))


def test_bad_samples() -> None:
    for expected in (0, -1, 4, 3.001, math.nan):
        with pytest.raises(InputError, match=f"a sample of {expected} classes is expected, but 3 of 4"):
            Poisson(Unigram([1, 2, 0, 3]), expected)
    with pytest.raises(InputError, match=r"in \[0, 1\], but class 1 has 1\.5"):
        Poisson([0.5, 1.5])
    with pytest.raises(InputError, match=r"inclusion probabilities .* class 0 of 2 has -0\.5"):
        Poisson([-0.5, 0.5])
    with pytest.raises(InputError, match="all 2 classes are"):
        Poisson([0.0, 0.0])
    with pytest.raises(InputError, match="not a sampler and None"):
        Poisson(Uniform(3))
    with pytest.raises(InputError, match="not probabilities and 2"):
        Poisson([0.5, 0.5], 2)
    with pytest.raises(InputError, match="class 1 of 2 has nan"):
        inclusion(torch.tensor([0.0, math.nan]), 1)


def test_arrays_with_negative_strides_are_accepted() -> None:
    counts = np.array([1.0, 10, 50, 100])[::-1]
    ids = torch.arange(4)
    assert torch.equal(Unigram(counts).log_prob(ids), Unigram([100, 50, 10, 1]).log_prob(ids))
    assert torch.equal(Alias(counts).alias, Alias([100, 50, 10, 1]).alias)
    assert Poisson(counts / 100).log_inclusion(ids).exp().tolist() == pytest.approx([1, 0.5, 0.1, 0.01])
    assert Poisson((np.array([1.0, 10, 50, 100]) / 100)[::-1]).always.tolist() == [0]


@pytest.mark.parametrize("wrong", [-1, -2, 4, 2**40])
@pytest.mark.parametrize("make", [lambda: Uniform(4), lambda: LogUniform(4), lambda: Unigram(COUNTS), None])
def test_ids_out_of_range_are_refused(make, wrong: int) -> None:
    """An id of -1 would wrap around to the last class."""
    log_prob = make().log_prob if make else Poisson([0.5, 0.1, 1.0, 0.2]).log_inclusion
    assert log_prob(torch.arange(4)).isfinite().all()
    assert log_prob(torch.empty(0, 3, dtype=torch.int64)).shape == (0, 3)
    for ids in (torch.tensor(wrong), torch.tensor([[0, 3], [wrong, 1]])):
        with pytest.raises(InputError, match=rf"0\.\.3, .*{wrong}"):
            log_prob(ids)
