"""The losses as functions: each against its equation in loops in float64 with gradients, and what they refuse."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contrast.candidates import ABSENT
from contrast.errors import InputError
from contrast.functional import (
    clip_loss,
    dcl,
    info_nce,
    nce,
    negative_sampling,
    nt_xent,
    sampled_softmax,
    siglip_loss,
    sup_con,
)

T = 0.3
LABELS = [1, 0, 1, 2, 0, 3]


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def assert_same(losses: Tensor, expected: list[Tensor], *inputs: Tensor) -> None:
    torch.testing.assert_close(losses, torch.stack(expected))
    weights = torch.arange(1, len(losses) + 1, dtype=torch.float64)  # a gradient of its own for every row
    for x in inputs:
        got, wanted = (
            torch.autograd.grad((weights * y).sum(), x, retain_graph=True)[0] for y in (losses, torch.stack(expected))
        )
        torch.testing.assert_close(got, wanted)


def similar(a: Tensor, b: Tensor, normalize: bool) -> Tensor:
    return a @ b / (a.norm() * b.norm()) if normalize else a @ b


def naive_views(z: Tensor, labels: list[int], normalize: bool, decoupled: bool = False) -> list[Tensor]:
    """Each row's loss, with the positives that share its label; without one 0."""
    losses = []
    for i in range(len(z)):
        others = [k for k in range(len(z)) if k != i]
        positives = [k for k in others if labels[k] == labels[i]]
        below = [k for k in others if k not in positives] if decoupled else others
        denominator = sum((similar(z[i], z[k], normalize) / T).exp() for k in below)
        each = [-similar(z[i], z[p], normalize) / T + denominator.log() for p in positives]
        losses.append(sum(each) / len(each) if each else z.new_zeros(()))
    return losses


@pytest.mark.parametrize("normalize", [True, False])
def test_losses_between_views(normalize: bool) -> None:
    z1, z2 = rows(6, 4, seed=1), rows(6, 4, seed=2)
    z, pair = torch.cat([z1, z2]), [*range(6), *range(6)]
    options = {"temperature": T, "reduction": "none", "normalize": normalize}
    assert_same(nt_xent(z1, z2, **options), naive_views(z, pair, normalize), z1, z2)
    assert_same(dcl(z1, z2, **options), naive_views(z, pair, normalize, decoupled=True), z1, z2)
    labels = torch.tensor(LABELS)
    assert_same(sup_con(z1, z2, labels, **options), naive_views(z, 2 * LABELS, normalize), z1, z2)
    assert_same(sup_con(z1, None, labels, **options), naive_views(z1, LABELS, normalize), z1)


def test_rows_alone_with_their_label_do_not_count_in_the_mean() -> None:
    z = rows(6, 4)
    each = sup_con(z, None, torch.tensor(LABELS), T, reduction="none")
    assert (each > 0).tolist() == [True, True, True, False, True, False]
    torch.testing.assert_close(sup_con(z, None, torch.tensor(LABELS), T), each.sum() / 4)
    assert sup_con(z, None, torch.arange(6), T).item() == 0


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", ["of the batch", "shared", "each its own"])
def test_info_nce(kind: str, normalize: bool) -> None:
    query, key = rows(5, 4, seed=1), rows(5, 4, seed=2)
    negatives = {"of the batch": None, "shared": rows(7, 4, seed=3), "each its own": rows(5, 7, 4, seed=3)}[kind]
    expected = []
    for i in range(5):
        if negatives is None:
            others = [key[j] for j in range(5) if j != i]
        else:
            others = list(negatives if negatives.ndim == 2 else negatives[i])
        scores = torch.stack([similar(query[i], vector, normalize) / T for vector in (key[i], *others)])
        expected.append(-scores[0] + scores.exp().sum().log())
    losses = info_nce(query, key, negatives, T, reduction="none", normalize=normalize)
    assert_same(losses, expected, query, key, *(() if negatives is None else (negatives,)))


@pytest.mark.parametrize("normalize", [True, False])
def test_clip(normalize: bool) -> None:
    image, text, n = rows(5, 4, seed=1), rows(5, 4, seed=2), 5
    expected = []
    for i in range(n):
        row = torch.stack([similar(image[i], text[k], normalize) / T for k in range(n)])
        column = torch.stack([similar(image[k], text[i], normalize) / T for k in range(n)])
        expected.append((row.logsumexp(0) + column.logsumexp(0)) / 2 - row[i])
    assert_same(clip_loss(image, text, T, reduction="none", normalize=normalize), expected, image, text)


@pytest.mark.parametrize("normalize", [True, False])
def test_siglip(normalize: bool) -> None:
    image, text, n = rows(5, 4, seed=1), rows(5, 4, seed=2), 5
    bias = torch.tensor(-1.5, dtype=torch.float64, requires_grad=True)
    expected = []
    for i in range(n):
        logits = [similar(image[i], text[j], normalize) / T + bias for j in range(n)]
        expected.append(-sum(F.logsigmoid(logits[j] if i == j else -logits[j]) for j in range(n)))
    assert_same(siglip_loss(image, text, T, bias, reduction="none", normalize=normalize), expected, image, text, bias)


@pytest.mark.parametrize("shared_noise", [True, False])
def test_losses_of_data_beside_noise(shared_noise: bool) -> None:
    data, noise = rows(4, seed=1), rows(*((3,) if shared_noise else (4, 3)), seed=2)
    data_log_q, noise_log_q = rows(4, seed=3), rows(*noise.shape, seed=4)
    of_nce, of_sampling, of_softmax = [], [], []
    for i in range(4):
        drawn = noise if shared_noise else noise[i]
        drawn_log_q = noise_log_q if shared_noise else noise_log_q[i]
        s = data[i] - data_log_q[i]
        others = [drawn[j] - drawn_log_q[j] for j in range(3)]
        of_nce.append(-F.logsigmoid(s) - sum(F.logsigmoid(-x) for x in others))
        of_softmax.append(-s + torch.stack([s, *others]).exp().sum().log())
        of_sampling.append(-F.logsigmoid(data[i]) - sum(F.logsigmoid(-x) for x in drawn))
    given = (data, noise, data_log_q, noise_log_q)
    assert_same(nce(*given, reduction="none"), of_nce, *given)
    assert_same(sampled_softmax(*given, reduction="none"), of_softmax, *given)
    assert_same(negative_sampling(data, noise, reduction="none"), of_sampling, data, noise)


def test_log_q_comes_as_a_number_or_once_for_all_queries() -> None:
    data, noise = rows(4, seed=1).detach(), rows(4, 3, seed=2).detach()
    shared, number = rows(3, seed=3).detach(), math.log(3 / 8)
    for loss in (nce, sampled_softmax):
        expected = loss(data, noise, torch.full((4,), number, dtype=torch.float64), shared.expand(4, 3))
        assert loss(data, noise, number, shared).item() == pytest.approx(expected.item(), rel=1e-12)
    certain = sampled_softmax(data.requires_grad_(), noise, -math.inf, shared)  # noise never draws it
    assert certain.item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(certain, data)[0].abs().max() < 1e-12


def test_by_hand() -> None:
    """Scores 2, 1, 0, -1, noise .4, .3, .2, .1, class 0, draws 1, 2, 1: k = 3."""
    s, log_q = torch.tensor([2.0, 1.0, 0.0, -1.0]).double(), torch.tensor([0.4, 0.3, 0.2, 0.1]).double().log()
    data, drawn = torch.tensor([0]), torch.tensor([1, 2, 1])
    k = math.log(3)
    assert nce(s[data], s[drawn], log_q[data] + k, log_q[drawn] + k).item() == pytest.approx(3.914038, abs=5e-7)
    assert negative_sampling(s[data], s[drawn]).item() == pytest.approx(3.446599, abs=5e-7)
    for shift in (0, k):
        loss = sampled_softmax(s[data], s[drawn], log_q[data] + shift, log_q[drawn] + shift)
        assert loss.item() == pytest.approx(0.811678, abs=5e-7)


# every function of vectors, of two batches [N, D] and a temperature
OF_VECTORS: dict[str, Callable[..., Tensor]] = {
    "nt_xent": nt_xent,
    "dcl": dcl,
    "sup_con": lambda a, b, *args, **options: sup_con(a, b, torch.arange(len(a)) // 2, *args, **options),
    "info_nce": lambda a, b, *args, **options: info_nce(a, b, None, *args, **options),
    "info_nce, shared": lambda a, b, *args, **options: info_nce(a, b, b.flip(0), *args, **options),
    "clip_loss": clip_loss,
    "siglip_loss": lambda a, b, t=0.1, *args, **options: siglip_loss(a, b, t, -1.0, *args, **options),
}


@pytest.mark.parametrize("name", OF_VECTORS)
def test_the_mean_is_that_of_the_rows(name: str) -> None:
    loss, a, b = OF_VECTORS[name], rows(6, 4, seed=1), rows(6, 4, seed=2)
    each = loss(a, b, T, "none")
    assert each.shape == ((12,) if name in ("nt_xent", "dcl", "sup_con") else (6,))
    torch.testing.assert_close(loss(a, b, T), each.mean())
    torch.testing.assert_close(loss(F.normalize(a), F.normalize(b), T, normalize=False), each.mean())
    with pytest.raises(InputError, match="reduction is mean or none, not 'sum'"):
        loss(a, b, T, "sum")


@pytest.mark.parametrize("form", [(), (1,)])
@pytest.mark.parametrize("name", OF_VECTORS)
def test_a_temperature_that_is_a_tensor_gets_a_gradient(name: str, form: tuple[int, ...]) -> None:
    loss, a, b, step = OF_VECTORS[name], rows(6, 4, seed=1), rows(6, 4, seed=2), 1e-6
    temperature = torch.full(form, T, dtype=torch.float64, requires_grad=True)
    got = loss(a, b, temperature)
    got.backward()
    assert got.shape == ()
    assert got.item() == pytest.approx(loss(a, b, T).item(), rel=1e-12)  # the number is not rounded to float32
    around = [loss(a, b, T + sign * step).item() for sign in (1, -1)]
    assert temperature.grad is not None
    assert temperature.grad.shape == form
    assert temperature.grad.item() == pytest.approx((around[0] - around[1]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", OF_VECTORS)
def test_half_vectors_are_scored_in_float32(name: str, dtype: torch.dtype) -> None:
    loss = OF_VECTORS[name]
    a, b = (rows(6, 4, seed=seed).detach().to(dtype).requires_grad_() for seed in (1, 2))
    expected = loss(a.float(), b.float(), 0.005)
    with torch.autocast("cpu", torch.bfloat16):
        got = loss(a, b, 0.005)
        assert loss(a.float(), b.float(), 0.005).item() == expected.item()
        assert loss(a.double(), b.double(), 0.005).dtype == torch.float64
    assert got.dtype == torch.float32
    assert got.item() == expected.item()
    got.backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()


@pytest.mark.parametrize("name", OF_VECTORS)
def test_zero_vectors_and_half_scores_stay_finite(name: str) -> None:
    a, b = torch.zeros(6, 4, requires_grad=True), torch.ones(6, 4)
    OF_VECTORS[name](a, b, 0.005).backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()
    scores = torch.tensor([60000.0, -60000.0], dtype=torch.float16, requires_grad=True)
    for loss in (nce, sampled_softmax):
        value = loss(scores, scores, -5.0, -5.0)
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert torch.autograd.grad(value, scores)[0].isfinite().all()


@pytest.mark.parametrize("name", OF_VECTORS)
@pytest.mark.parametrize("bad", [0, -0.1, math.nan, math.inf])
def test_a_temperature_must_be_positive(name: str, bad: float) -> None:
    a = rows(6, 4)
    for form in (bad, torch.tensor(float(bad))):
        with pytest.raises(InputError, match=f"temperature must be a positive number, got {bad}"):
            OF_VECTORS[name](a, a, form)
    with pytest.raises(InputError, match=r"temperature must be a scalar, got shape \[6\]"):
        OF_VECTORS[name](a, a, torch.ones(6))


@pytest.mark.parametrize("name", OF_VECTORS)
def test_batches_that_do_not_fit(name: str) -> None:
    loss = OF_VECTORS[name]
    with pytest.raises(InputError, match=r"are \[N, D\] both, got \[6, 4\] and \[5, 4\]"):
        loss(rows(6, 4), rows(5, 4))
    with pytest.raises(InputError, match=r"are \[N, D\] both, got \[2, 6, 4\] and \[2, 6, 4\]"):
        loss(rows(2, 6, 4), rows(2, 6, 4))
    if name != "info_nce, shared":  # one query has negatives there
        with pytest.raises(InputError, match="a batch of 1 has no negatives"):
            loss(rows(1, 4), rows(1, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: sup_con(z, z, torch.arange(5)), r"a label for each of 6 rows, got labels of shape \[5\]"),
        (lambda z: info_nce(z, z, rows(7, 3)), r"negatives of 6 queries are \[K, 4\] or \[6, K, 4\], got \[7, 3\]"),
        (lambda z: info_nce(z, z, rows(5, 7, 4)), r"\[K, 4\] or \[6, K, 4\], got \[5, 7, 4\]"),
        (lambda z: info_nce(z, z, rows(4)), r"\[K, 4\] or \[6, K, 4\], got \[4\]"),
        (lambda z: info_nce(z, z, rows(0, 4)), r"6 queries needs at least 1 negative, got \[0, 4\]"),
        (lambda z: siglip_loss(z, z, 0.1, torch.zeros(6)), r"the bias must be a scalar, got shape \[6\]"),
        (lambda z: nce(z, z, 0.0, 0.0), r"data are \[B\], of their noise \[B, K\] or \[K\], got \[6, 4\] and \[6, 4\]"),
        (lambda z: nce(z[:5, 0], z, 0.0, 0.0), r"got \[5\] and \[6, 4\]"),
        (lambda z: negative_sampling(z[:, 0], z[:, :0]), r"got \[6\] and \[6, 0\]"),
        (
            lambda z: nce(z[:, 0], z, torch.zeros(5), 0.0),
            r"data_log_q of shape \[5\] does not fit scores of shape \[6\]",
        ),
        (lambda z: nce(z[:, 0], z, 0.0, torch.zeros(6)), r"noise_log_q of shape \[6\] does not fit scores of shape"),
        (lambda z: sampled_softmax(z[:, 0], z[0], 0.0, z), r"noise_log_q of shape \[6, 4\] does not fit .* \[4\]"),
    ],
)
def test_other_bad_shapes(call: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(rows(6, 4))


@pytest.mark.parametrize("dtype", ["int32", "int16", "uint8", "float64"])
def test_labels_of_any_type_of_whole_numbers(dtype: str) -> None:
    """The mark of absent ids does not fit narrow types: class 0 was left out silently."""
    z1, z2 = torch.randn(2, 6, 4)
    labels = np.array([0, 1, 0, 2, 1, 0], dtype=dtype)
    expected = sup_con(z1, z2, torch.tensor([0, 1, 0, 2, 1, 0]))
    torch.testing.assert_close(sup_con(z1, z2, labels), expected)
    torch.testing.assert_close(sup_con(z1, z2, torch.from_numpy(labels)), expected)


def test_labels_that_are_no_whole_numbers_are_refused() -> None:
    z1, z2 = torch.randn(2, 3, 4)
    for labels in (torch.tensor([0.5, 1, 2]), torch.tensor([True, False, True]), np.array(["a", "b", "c"])):
        with pytest.raises(InputError, match="labels must be whole numbers"):
            sup_con(z1, z2, labels)


def test_a_first_call_in_inference_mode_does_not_spoil_training() -> None:
    """What is kept from call to call is made of ordinary tensors."""
    image, text = torch.randn(2, 37, 4)  # a size that no other test has
    with torch.inference_mode():
        siglip_loss(image, text, 0.1, -3.0)
    image.requires_grad_()
    siglip_loss(image, text, 0.1, -3.0).backward()
    (gradient,) = torch.autograd.grad(nt_xent(image, text), image, create_graph=True)
    gradient.square().sum().backward()


def test_gather_in_one_process_adds_no_negatives() -> None:
    one = torch.randn(1, 4)
    for call in (nt_xent, clip_loss, lambda a, b, gather: siglip_loss(a, b, 0.1, -3.0, gather=gather)):
        with pytest.raises(InputError, match="a batch of 1 has no negatives"):
            call(one, one, gather=True)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("n", [2, 40, 300])
def test_one_matrix_and_the_other_ways_give_the_same(monkeypatch: pytest.MonkeyPatch, n: int, normalize: bool) -> None:
    """The functions choose between them by the number of scores."""
    z1, z2 = rows(n, 5, seed=1), rows(n, 5, seed=2)
    temperature = torch.tensor(T, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(n) % 7
    weights = rows(2 * n, seed=3).detach()
    found = []
    for most in (10**9, 0):
        monkeypatch.setattr("contrast.losses.functions.MAX_SCORES_LABELS", most)
        monkeypatch.setattr("contrast.losses.functions.MAX_SCORES_SIGMOID", most)
        monkeypatch.setattr("contrast.losses.softmax.MAX_SCORES_CROSS_ENTROPY", most)
        losses = [
            sup_con(z1, z2, labels, temperature, "none", normalize),
            siglip_loss(z1, z2, temperature, bias, "none", normalize),
            nt_xent(z1, z2, temperature, "none", normalize),
            clip_loss(z1, z2, temperature, "none", normalize),
        ]
        total = torch.stack([(each * weights[: len(each)]).sum() for each in losses]).sum()
        found.append((*losses, *torch.autograd.grad(total, [z1, z2, temperature, bias])))
    for of_matrix, of_tiles in zip(*found, strict=True):
        torch.testing.assert_close(of_matrix, of_tiles)


def test_labels_of_their_own_are_the_pairs_of_nt_xent_in_float32() -> None:
    """Also where the loss is nearly 0."""
    z = F.normalize(rows(40, 16).detach().float())
    z1, z2 = ((z + 0.01 * rows(40, 16, seed=seed).detach().float()).requires_grad_() for seed in (1, 2))
    ours, theirs = sup_con(z1, z2, torch.arange(40), 0.07), nt_xent(z1, z2, 0.07)
    assert theirs < 1e-2
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    for got, wanted in zip(*(torch.autograd.grad(each, [z1, z2]) for each in (ours, theirs)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("most", [0, 10**9])
def test_rows_whose_label_is_absent_are_no_candidates(
    monkeypatch: pytest.MonkeyPatch, compiled: bool, most: int
) -> None:
    monkeypatch.setattr("contrast.losses.functions.MAX_SCORES_LABELS", most)
    z = rows(6, 4)
    labels = torch.tensor([0, 0, 1, ABSENT, ABSENT, 1])
    call = torch.compile(sup_con, backend="eager", fullgraph=True) if compiled else sup_con
    losses = call(z, None, labels, T, "none")
    some = [0, 1, 2, 5]
    torch.testing.assert_close(losses[some], sup_con(z[some], None, labels[some], T, "none"))
    assert losses[[3, 4]].tolist() == [0, 0]
    only = sup_con(z[:2], None, torch.tensor([0, ABSENT]), T)
    (gradient,) = torch.autograd.grad(only, z)
    assert gradient.isfinite().all()
