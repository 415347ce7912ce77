"""The Triton kernels against the whole matrix in float64: every rule, head and type of input, values and gradients.

Triton chooses between its compiler and its interpreter when it is imported, which any test may have done already. So
one process with TRITON_INTERPRET=1 runs all cases on the CPU, this file as a script, and a test looks up its case.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from contrast.candidates import ABSENT, Candidates
from contrast.errors import InputError
from contrast.heads import NCE, CosFace, Estimated, Head, InfoNCE, Learnable, LearnedBias
from contrast.losses import plan as plans
from contrast.losses.tiled import triton as cuda
from contrast.negatives import Paired

B, C, D = 21, 37, 20  # no tile of the interpreted kernels divides them

Rules = Callable[..., tuple[Tensor, Candidates]]
Case = Callable[[], None]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def whole(count: int, below: int, seed: int) -> Tensor:
    return torch.randint(below, (count,), generator=torch.Generator().manual_seed(seed))


def some_absent(values: Tensor) -> Tensor:
    return values.masked_fill(torch.arange(len(values)) % 5 == 2, ABSENT)


def among_themselves(ids: Tensor, dim: int = D, **rules: Any) -> tuple[Tensor, Candidates]:
    z = numbers(len(ids), dim)
    return z, Candidates(z, ids, ids, self_index=torch.arange(len(ids)), **rules)


def against(ids: Tensor | None = None, positives: int = 0, dim: int = D, **rules: Any) -> tuple[Tensor, Candidates]:
    if positives:
        rules["positives"] = numbers(B, positives, dim, seed=3)
    return numbers(B, dim), Candidates(numbers(C, dim, seed=2), whole(B, 5, seed=1), ids, **rules)


PAIRS = torch.arange(B).repeat(2)
LABELS = whole(C, 4, seed=9)
IDS = whole(C, 5, seed=7)
HIDDEN = some_absent(PAIRS)
GROUPS = {"excluded_groups": whole(C, 5, seed=4), "query_groups": whole(B, 5, seed=5)}
LOG_Q = numbers(C, seed=6) - 1

RULES: dict[str, Rules] = {
    "pairs": lambda: among_themselves(PAIRS, symmetric=True),
    "pairs, some absent": lambda: among_themselves(HIDDEN, symmetric=True),
    "labels": lambda: among_themselves(LABELS, symmetric=True),
    "labels, not of queries": lambda: among_themselves(LABELS),
    "labels, groups absent": lambda: among_themselves(
        LABELS, excluded_groups=some_absent(LABELS // 2), query_groups=some_absent(LABELS // 2), symmetric=True
    ),
    "one label": lambda: among_themselves(torch.zeros(18, dtype=torch.long), symmetric=True),  # no negatives
    "own in part": lambda: against(IDS, self_index=torch.arange(B) - 3),
    "ids absent": lambda: against(some_absent(IDS)),
    "ids, groups": lambda: against(IDS, **GROUPS),
    "long ids": lambda: long_ids(),  # whose low words are equal
    "no positive": lambda: against(IDS + 5),
    "ids, log_q": lambda: against(IDS, log_q=LOG_Q.masked_fill(torch.arange(C) == 3, -torch.inf)),
    "answers, groups": lambda: against(positives=2, **GROUPS),
    "answers, ids, log_q": lambda: against(IDS, positives=1, log_q=LOG_Q, positives_log_q=numbers(B, 1, seed=8)),
    "nobody": lambda: against(torch.full((C,), ABSENT), positives=1),
}


def long_ids() -> tuple[Tensor, Candidates]:
    query, candidates = against(IDS * 2**40)
    return query, Candidates(candidates.vectors, candidates.query_ids * 2**40, candidates.ids)


EVERY_HEAD = ("pairs", "labels, groups absent", "answers, ids, log_q")

HEADS: dict[str, Callable[[float], Head]] = {
    "InfoNCE": lambda t: InfoNCE(Learnable(t, 1e-4)),
    "dot": lambda t: InfoNCE(Learnable(4 * t, 1e-4), cosine=False),
    "decoupled": lambda t: InfoNCE(Learnable(t, 1e-4), decoupled=True),
    "debiased": lambda t: InfoNCE(Learnable(t, 1e-4), class_prior=0.1),
    "hard, debiased": lambda t: InfoNCE(Learnable(t, 1e-4), class_prior=0.05, hardness=1.0),
    "NCE": lambda t: NCE(Learnable(t, 1e-4), bias=LearnedBias(-2.0)),
    "negative sampling": lambda t: NCE(Learnable(4 * t, 1e-4), cosine=False, correction=False),
    "NCE, estimated": lambda t: NCE(Learnable(t, 1e-4), bias=Estimated()),
}


def error(got: Tensor, expected: Tensor) -> float:
    """Relative, of the whole tensor."""
    return ((got.double() - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def leaves(query: Tensor, candidates: Candidates) -> dict[str, Tensor]:
    found = {"query": query}
    if candidates.vectors is not query:
        found["vectors"] = candidates.vectors
    if candidates.positives is not None:
        found["positives"] = candidates.positives
    return found


def as_type(query: Tensor, candidates: Candidates, dtype: torch.dtype) -> tuple[Tensor, Candidates]:
    """Copies that want gradients; vectors that are the queries stay so."""
    copies = {name: each.to(dtype).detach().requires_grad_() for name, each in leaves(query, candidates).items()}
    others = {"vectors": copies["query"]} | copies
    others.pop("query")
    for name in ("log_q", "positives_log_q"):
        if getattr(candidates, name) is not None:
            others[name] = getattr(candidates, name).to(torch.promote_types(dtype, torch.float32))
    fields = {name: getattr(candidates, name) for name in candidates.__dataclass_fields__}
    return copies["query"], Candidates(**fields | others)


def told(head: Head, query: Tensor, candidates: Candidates, fast: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Losses, who counts, and the gradients of a weighted sum of losses by name."""
    head.tiled = fast
    if fast:
        assert plans.plan(query, candidates, head.scoring()).method == "triton"
    losses, counted = head(query, candidates)
    named = leaves(query, candidates) | dict(head.named_parameters())
    weights = numbers(len(losses), seed=99).to(losses)  # of either sign
    grads = torch.autograd.grad((losses * weights).sum(), list(named.values()), allow_unused=True)
    zero = losses.new_zeros(())
    return losses.detach(), counted, {k: zero if g is None else g for k, g in zip(named, grads, strict=True)}


TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # of gradients; a slope's rounding


def same(
    rules: Rules, make: Callable[[], Head], dtype: torch.dtype = torch.float32, losses: float = 1e-5, grads: float = 0.0
) -> None:
    """The kernels' losses and gradients are those of the whole matrix in float64, of the same rounded inputs."""
    query, candidates = as_type(*rules(), dtype)
    if candidates.log_q is not None and isinstance(head := make(), InfoNCE) and (head.class_prior or head.hardness):
        return  # refused
    fast, slow = make().to(query.device), make().to(query.device).double()
    got = told(fast, query, candidates, True)
    expected = told(slow, *as_type(query, candidates, torch.float64), False)
    assert got[0].dtype == torch.float32
    assert error(got[0], expected[0]) < losses, f"losses: {error(got[0], expected[0])}"
    assert torch.equal(got[1], expected[1])
    for name, grad in expected[2].items():
        assert grad.isfinite().all(), name
        wrong = error(got[2][name], grad)
        of_head = 4 if name not in leaves(query, candidates) else 1  # a sum of either sign over all pairs
        assert wrong < of_head * (grads or TOLERANCE[dtype]), f"{name}: {wrong}"
        if name in leaves(query, candidates) and grad.any():
            assert got[2][name].dtype == dtype
    if isinstance(fast, NCE) and fast.bias.needs_log_z:
        torch.testing.assert_close(fast.bias.pending, slow.bias.pending, check_dtype=False)


def views(noise: float, images: int = 20, dim: int = 32, seed: int = 0) -> tuple[Tensor, Candidates]:
    first = numbers(images, dim, seed=seed)
    z = torch.cat([first, first + noise * numbers(images, dim, seed=seed + 1)])
    ids = torch.arange(images).repeat(2)
    return z, Candidates(z, ids, ids, self_index=torch.arange(2 * images), symmetric=True)


def solved(dtype: torch.dtype) -> None:
    """Every query all but solved: its gradient is small, and the relative error of every row too."""
    query, candidates = as_type(*views(0.3), dtype)
    losses, _, grads = told(InfoNCE(0.05), query, candidates, True)
    expected, _, exact = told(InfoNCE(0.05).double(), *as_type(query, candidates, torch.float64), False)
    assert expected.max() < 1e-2
    assert expected.median() < 1e-4
    assert error(losses, expected) < 2e-5
    assert error(grads["query"], exact["query"]) < TOLERANCE[dtype]
    if dtype != torch.float16:  # which holds no number as small without a loss scaler
        worst = max(error(got, row) for got, row in zip(grads["query"], exact["query"], strict=True))
        assert worst < 5 * TOLERANCE[dtype], worst


def stress(case: str, dtype: torch.dtype) -> None:
    def rules() -> tuple[Tensor, Candidates]:
        z, candidates = views(1.0, dim=8)
        if case == "zero":
            z[::3] = 0
        elif case == "longest":
            z *= 65504 / z.norm(dim=1, keepdim=True)
        elif case == "zero and longest":
            z *= 65504 / z.norm(dim=1, keepdim=True)
            z[::3] = 0
        elif case == "short":
            z *= 1e-3
        return z, candidates

    for make in (lambda: InfoNCE(Learnable(0.1)), lambda: NCE(Learnable(0.1), bias=-3.0)):
        if dtype != torch.float16 or "longest" not in case:
            same(rules, make, dtype)
            continue
        query, candidates = as_type(*rules(), dtype)  # gradients less than float16 holds: they are finite
        losses, _, grads = told(make(), query, candidates, True)
        expected, _, _ = told(make().double(), *as_type(query, candidates, torch.float64), False)
        assert error(losses, expected) < 1e-5
        assert all(grad.isfinite().all() for grad in grads.values())


def no_second_derivative() -> None:
    for head in (InfoNCE(), NCE()):
        query, candidates = as_type(*views(1.0), torch.float32)
        head.tiled = True
        losses, _ = head(query, candidates)
        with pytest.raises(InputError, match="second derivative"):
            torch.autograd.grad(losses.sum(), query, create_graph=True)


def parts() -> None:
    """Columns shared by several programs, the last of which may have none."""
    for count, rules, head in [(2, "pairs", "InfoNCE"), (2, "ids, groups", "hard, debiased"), (7, "ids, log_q", "NCE")]:
        with mock.patch.object(cuda, "shared_by", lambda *_, n=count: n):
            same(RULES[rules], lambda h=head: HEADS[h](0.2))


def ranks(dtype: torch.dtype) -> None:
    """Two ranks, one after the other in this process: each has the gradient of both ranks' losses for its own rows."""
    z, candidates = as_type(*views(1.0, images=18), dtype)
    weights = numbers(len(z), seed=99)
    slow, _, expected = told(InfoNCE(Learnable(0.2)).double(), *as_type(z, candidates, torch.float64), False)
    halves = [slice(0, len(z) // 2), slice(len(z) // 2, None)]
    theirs = [InfoNCE(Learnable(0.2), tiled=True) for _ in halves]
    asked, losses, waiting, of_temperature = [], [], [], []
    for part, head in zip(halves, theirs, strict=True):
        mine = z[part].detach().requires_grad_()
        rules = Candidates(
            z.detach(),
            candidates.query_ids[part],
            candidates.ids,
            self_index=candidates.self_index[part],
            symmetric=True,
        )
        asked.append(mine)
        losses.append(head(mine, rules)[0])
    for sent in (waiting.append, None):  # first what every rank sends, then with what all have sent
        for part, mine, loss, head in zip(halves, asked, losses, theirs, strict=True):
            gather = (lambda x: sent(x) or x.repeat(2, 1)) if sent else (lambda _: torch.cat(waiting))  # noqa: B023
            with mock.patch.object(cuda, "gather", gather):
                of_mine, of_its = torch.autograd.grad(
                    (loss * weights[part]).sum(), [mine, head.temperature.log_temperature], retain_graph=True
                )
            if sent is None:
                assert error(of_mine, expected["query"][part]) < TOLERANCE[dtype]
                of_temperature.append(of_its)
    assert error(torch.cat(losses), slow) < 1e-5
    assert error(sum(of_temperature), expected["temperature.log_temperature"]) < 4 * TOLERANCE[dtype]


def needs_the_rest() -> None:
    """What the kernels do not do is done by others."""
    query, candidates = as_type(*against(IDS), torch.float32)
    assert cuda.can_run(query, candidates, has_margin=False)
    assert not cuda.can_run(query, candidates, has_margin=True)
    assert not cuda.can_run(*as_type(*against(IDS), torch.float64), has_margin=False)
    assert not cuda.can_run(*as_type(*against(IDS.expand(B, C)), torch.float32), has_margin=False)
    assert not cuda.can_run(*as_type(*against(IDS, log_q=LOG_Q.expand(B, C)), torch.float32), has_margin=False)
    ring = as_type(*against(IDS, ring=True), torch.float32)
    assert plans.plan(*ring, InfoNCE(tiled=True).scoring()).method != "triton"
    for head in (InfoNCE(margin=CosFace(), tiled=True), InfoNCE(label_smoothing=0.1, tiled=True)):
        losses, _ = head(query, candidates)
        head.tiled = False
        torch.testing.assert_close(losses, head(query, candidates)[0])
    answered = as_type(*against(positives=1), torch.float32)
    same(lambda: answered, lambda: InfoNCE(0.2, margin=CosFace()))  # only the answers bear it
    queue = Candidates(numbers(C, D).float(), candidates.query_ids, IDS)  # of another type than the queries
    half = query.detach().to(torch.bfloat16)
    torch.testing.assert_close(
        InfoNCE(tiled=True)(half, queue)[0], InfoNCE(tiled=False)(half, queue)[0], rtol=1e-5, atol=1e-5
    )


def both_directions() -> None:
    """CLIP's loss: a gradient reaches each tower from its queries and from its candidates."""
    for make in (lambda: InfoNCE(Learnable(0.2)), lambda: NCE(Learnable(0.2), bias=LearnedBias(-3.0))):
        found = []
        for dtype in (torch.float32, torch.float64):
            towers = [numbers(1, B, D, seed=seed).float().to(dtype).requires_grad_() for seed in (1, 2)]
            asked = Paired(reverse=True)(*towers, torch.arange(B))
            head = make().to(dtype)
            head.tiled = dtype == torch.float32
            losses = torch.cat([head(q, candidates)[0] for q, candidates in asked])
            found.append([losses, *torch.autograd.grad(losses.mean(), [*towers, *head.parameters()])])
        for got, expected in zip(*found, strict=True):
            assert error(got, expected) < 1e-5


def choice() -> None:
    """By size, the kernels' own where they do."""
    query, candidates = as_type(*against(IDS), torch.float32)
    covered, rest = InfoNCE().scoring(), InfoNCE(margin=CosFace()).scoring()
    for of_torch, of_triton, expected in [
        (B * C + 1, B * C, ("triton", "matrix")), (B * C, B * C + 1, ("lists", "lists"))
    ]:  # fmt: skip
        with (
            mock.patch.object(plans, "MIN_SCORES_CPU", of_torch),
            mock.patch.object(plans, "MIN_SCORES_TORCH_GPU", of_torch),
            mock.patch.object(plans, "MIN_SCORES_TRITON", of_triton),
        ):
            assert tuple(plans.plan(query, candidates, each).method for each in (covered, rest)) == expected


def nan_stays() -> None:
    for head in (InfoNCE(), NCE()):
        query, candidates = as_type(*RULES["labels, groups absent"](), torch.float32)
        with torch.no_grad():
            query[3] = torch.nan
        head.tiled = True
        assert head(query, candidates)[0][3].isnan()


def cases() -> dict[str, Case]:
    types = (torch.float32, torch.float16, torch.bfloat16)
    found: dict[str, Case] = {}
    for rules in RULES:
        for head in HEADS if rules in EVERY_HEAD else ("InfoNCE", "NCE"):
            found[f"{head}: {rules}"] = lambda r=rules, h=head: same(RULES[r], lambda: HEADS[h](0.2))
    for dtype in types:
        for dim in (8, 20, 33, 48):
            found[f"InfoNCE: pairs, D = {dim}, {dtype}"] = lambda d=dim, t=dtype: same(
                lambda: among_themselves(PAIRS, d, symmetric=True), lambda: HEADS["InfoNCE"](0.1), t
            )
            found[f"NCE: ids, D = {dim}, {dtype}"] = lambda d=dim, t=dtype: same(
                lambda: against(IDS, dim=d), lambda: HEADS["NCE"](0.1), t
            )
        for case in ("zero", "longest", "zero and longest", "short"):
            found[f"{case}, {dtype}"] = lambda c=case, t=dtype: stress(c, t)
        found[f"solved, {dtype}"] = lambda t=dtype: solved(t)
        found[f"ranks, {dtype}"] = lambda t=dtype: ranks(t)
    for head in ("InfoNCE", "hard, debiased", "NCE"):
        found[f"{head}: temperature 0.005"] = lambda h=head: same(
            lambda: views(1.0), lambda: HEADS[h](0.005), losses=1e-4, grads=1e-3
        )
    found["hardness in float16"] = lambda: same(RULES["pairs"], lambda: HEADS["hard, debiased"](0.2), torch.float16)
    for case in (both_directions, choice, no_second_derivative, parts, needs_the_rest, nan_stays):
        found[case.__name__] = case
    return found


def run_all() -> dict[str, str]:
    """What went wrong, by case; and the seconds to the error stream."""
    errors: dict[str, str] = {}
    types = (torch.float32, torch.float16, torch.bfloat16)
    usable = lambda tensor: tensor.dtype in types  # noqa: E731
    with mock.patch.object(cuda, "usable", usable), mock.patch.object(plans, "TRITON_DEVICES", ("cpu", "cuda")):
        for name, case in cases().items():
            start = time.perf_counter()
            try:
                case()
                errors[name] = ""
            except Exception:
                errors[name] = traceback.format_exc()
            print(f"{time.perf_counter() - start:6.2f} {name}", file=sys.stderr)
    return errors


triton_is_there = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: there are wheels for Linux only"
)


@pytest.fixture(scope="module")
def results() -> dict[str, str]:
    """Of every case."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@triton_is_there
@pytest.mark.parametrize("case", cases())
def test_interpreted(case: str, results: dict[str, str]) -> None:
    if results[case]:
        pytest.fail(results[case], pytrace=False)


def on_cuda(rules: tuple[Tensor, Candidates]) -> tuple[Tensor, Candidates]:
    """Vectors that are the queries stay so."""
    query, candidates = rules
    there = query.cuda()
    fields = {name: getattr(candidates, name) for name in candidates.__dataclass_fields__}
    moved = {name: each.cuda() for name, each in fields.items() if isinstance(each, Tensor)}
    if candidates.vectors is query:
        moved["vectors"] = there
    return there, Candidates(**fields | moved)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dim", [33, 128, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head", ["InfoNCE", "hard, debiased", "NCE"])
def test_compiled(head: str, dtype: torch.dtype, dim: int) -> None:
    pairs, labels = torch.arange(2005).repeat(2), whole(4010, 10, seed=1)
    shared = numbers(3001, dim, seed=2), whole(1500, 300, seed=3), whole(3001, 300, seed=4)
    for rules in (
        among_themselves(pairs, dim, symmetric=True),
        among_themselves(labels, dim, excluded_groups=labels // 2, query_groups=labels // 2, symmetric=True),
        (numbers(1500, dim), Candidates(*shared, excluded_groups=shared[2] // 2, query_groups=shared[1] // 2)),
    ):
        there = on_cuda(rules)
        if not cuda.usable(there[0].to(dtype)):
            pytest.skip("the kernels do not run on this device in this type")
        same(lambda there=there: there, lambda: HEADS[head](0.1), dtype)


if __name__ == "__main__":
    print(json.dumps(run_all()))
