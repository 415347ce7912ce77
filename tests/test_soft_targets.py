"""A teacher's distribution as the target of the softmax loss: naive loops, special cases, sources, blocks, ranks."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from contrast.candidates import ABSENT, Candidates, Teacher
from contrast.errors import InputError
from contrast.heads import InfoNCE
from contrast.losses import plan
from contrast.losses.soft_targets import soft_target_loss, teacher_targets
from contrast.negatives import Prototypes, Queue

B, C, D, E = 7, 11, 5, 4


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.norm() * b.norm())


def naive(query: Tensor, candidates: Candidates, temperature: float) -> Tensor:
    """The definition, one query and one candidate at a time."""
    teacher, losses = candidates.teacher, []
    assert teacher is not None
    for i in range(len(query)):
        scores, targets = [], []
        for j in range(0 if candidates.positives is None else candidates.positives.shape[1]):
            scores.append(cosine(query[i], candidates.positives[i, j]) / temperature)
            targets.append(cosine(teacher.query[i], candidates.positives[i, j]) / teacher.temperature)
        for j in range(len(candidates)):
            if candidates.excluded_groups is not None and candidates.excluded_groups[j] in (
                ABSENT,
                candidates.query_groups[i],
            ):
                continue
            scores.append(cosine(query[i], candidates.vectors[j]) / temperature)
            other = candidates.vectors if teacher.vectors is None else teacher.vectors
            target = cosine(teacher.query[i], other[j]) / teacher.temperature
            targets.append(target if teacher.log_q is None else target - teacher.log_q[j])
        if not scores:
            losses.append(query[i].sum() * 0 + candidates.vectors.sum() * 0)
            continue
        weights = [math.exp(target.item()) for target in targets]
        p = [weight / sum(weights) for weight in weights]
        assert abs(sum(p) - 1) < 1e-12
        total = sum(s.exp() for s in scores)
        losses.append(sum(-p_j * torch.log(s.exp() / total) for p_j, s in zip(p, scores, strict=True)))
    return torch.stack(losses)


def cases() -> dict[str, Candidates]:
    ids, vectors = torch.arange(B), rows(C, D, seed=1)
    same = Teacher(rows(B, D, seed=2).detach(), 0.3)
    groups = torch.arange(C) % 5
    return {
        "the candidates' own vectors": Candidates(vectors, ids, teacher=same),
        "the teacher's vectors": Candidates(
            vectors, ids, teacher=Teacher(rows(B, E, seed=3).detach(), 0.3, rows(C, E, seed=4).detach())
        ),
        "a correction": Candidates(vectors, ids, teacher=replace(same, log_q=rows(C, seed=5).detach())),
        "own keys": Candidates(vectors, ids, positives=same.query[:, None], teacher=same),
        "groups": Candidates(vectors, ids, excluded_groups=groups, query_groups=ids, teacher=same),
        "an empty queue": Candidates(
            vectors, ids, excluded_groups=torch.full((C,), ABSENT), query_groups=ids, teacher=same
        ),
    }


@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("in_blocks", [False, True])
def test_the_definition(name: str, in_blocks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if in_blocks:
        monkeypatch.setattr("contrast.losses.scores.MIN_SCORES_BLOCKS", 2 * C)  # two queries at a time
    query, candidates = rows(B, D), cases()[name]
    losses, counted = InfoNCE(0.2, tiled=in_blocks).double()(query, candidates)
    expected = naive(query, candidates, 0.2)
    torch.testing.assert_close(losses, expected)
    assert bool(counted.all()) == (name != "an empty queue")
    assert bool(counted.any()) == (name != "an empty queue")
    for x in (query, candidates.vectors):
        got, wanted = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for y in (losses, expected))
        torch.testing.assert_close(got, wanted)


def test_blocks_are_taken_where_the_matrix_is_large() -> None:
    many = Candidates(torch.randn(plan.MIN_SCORES_BLOCKS // 64, 2), torch.arange(64), teacher=Teacher(rows(64, 2), 0.1))
    query = torch.randn(64, 2)
    head = InfoNCE(0.2)
    assert plan.plan(query, many, head.scoring(), lists=False, masks=False, triton=False).method == "blocks"
    torch.testing.assert_close(head(query, many)[0], InfoNCE(0.2, tiled=False)(query, many)[0], rtol=1e-4, atol=1e-5)


def test_a_sharp_teacher_is_info_nce() -> None:
    query, key, vectors = rows(B, D), rows(B, D, seed=1), rows(C, D, seed=2)
    hard = Candidates(vectors, torch.arange(B), positives=key[:, None])
    soft = replace(hard, teacher=Teacher(key.detach(), 1e-4))  # its own key has the highest cosine: one-hot
    head = InfoNCE(0.2).double()
    torch.testing.assert_close(head(query, soft)[0], head(query, hard)[0])


def test_a_teacher_that_knows_the_labels_is_sup_con() -> None:
    labels, query = torch.tensor([0, 0, 1, 1, 1, 2, 2, 0, 1, 2, 0]), rows(C, D)
    one_hot = torch.nn.functional.one_hot(labels, 3).double()
    index = torch.arange(C)
    hard = Candidates(query, labels, labels, self_index=index, symmetric=True)
    soft = Candidates(query, labels, self_index=index, teacher=Teacher(one_hot, 0.01, one_hot))
    head = InfoNCE(0.2).double()
    losses, expected = head(query, soft)[0], head(query, hard)[0]
    torch.testing.assert_close(losses, expected)
    got, wanted = (torch.autograd.grad(y.sum(), query, retain_graph=True)[0] for y in (losses, expected))
    torch.testing.assert_close(got, wanted)


def test_targets_sum_to_one_over_what_counts() -> None:
    for candidates in cases().values():
        _, valid = candidates.masks()
        if candidates.positives is not None:
            valid = torch.cat([torch.ones(B, 1, dtype=torch.bool), valid], dim=1)
        target = teacher_targets(candidates, valid)
        assert not target[~valid].any()
        torch.testing.assert_close(target.sum(dim=1), valid.any(dim=1).double())


def test_the_loss_of_a_uniform_target_is_label_smoothing_of_one() -> None:
    scores, valid = rows(B, C), torch.rand(B, C) < 0.7
    valid[:, 0] = True
    target = valid / valid.sum(dim=1, keepdim=True)
    expected = scores.masked_fill(~valid, -torch.inf).logsumexp(dim=1) - (scores * target).sum(dim=1)
    torch.testing.assert_close(soft_target_loss(scores, target, valid), expected)


def test_options_that_need_positives_are_refused() -> None:
    for options in ({"decoupled": True}, {"hardness": 1.0}, {"class_prior": 0.1}, {"label_smoothing": 0.1}):
        with pytest.raises(InputError, match="teacher"):
            InfoNCE(0.2, **options)(rows(B, D), cases()["a correction"])


# --- sources


def test_ressl_scores_the_queue_alone_and_seed_the_own_key_too() -> None:
    query, key, ids = rows(1, B, D), rows(1, B, D, seed=1), torch.arange(B)
    for own_key in (False, True):
        queue = Queue(16, D, teacher_temperature=0.05, own_key=own_key).double()
        ((_, empty),) = queue(query, key, ids)
        assert InfoNCE(0.1)(query[0], empty)[1].all() == own_key
        queue.update(query, key, ids)
        ((_, candidates),) = queue(query, rows(1, B, D, seed=2), ids + 100)
        losses, counted = InfoNCE(0.1).double()(query[0], candidates)
        assert counted.all()
        torch.testing.assert_close(losses, naive(query[0], candidates, 0.1))
        assert candidates.teacher is not None
        assert not candidates.teacher.query.requires_grad


def test_a_queue_refuses_what_does_not_go_with_a_teacher() -> None:
    with pytest.raises(InputError, match="own_key"):
        Queue(16, D, own_key=False)
    for options in ({"in_batch": True}, {"positives": True}):
        with pytest.raises(InputError, match=r"teacher_temperature=0\.1"):
            Queue(16, D, teacher_temperature=0.1, **options)
    with pytest.raises(InputError, match="-1"):
        Queue(16, D, teacher_temperature=-1.0)


def test_sinkhorn_uses_all_prototypes_equally() -> None:
    """Caron et al. 2020: after many iterations every prototype has the same mass, and every query sums to one."""
    source = Prototypes(C, D, 0.2, balance="sinkhorn", iterations=200).double()
    ((_, candidates),) = source(rows(1, 40, D), rows(1, 40, D, seed=1), torch.arange(40))
    target = teacher_targets(candidates, torch.ones(40, C, dtype=torch.bool))
    torch.testing.assert_close(target.sum(dim=1), torch.ones(40, dtype=torch.float64))
    torch.testing.assert_close(target.mean(dim=0), torch.full((C,), 1 / C, dtype=torch.float64))


@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn_is_the_papers_iteration(iterations: int) -> None:
    """Algorithm of the appendix: exp(scores / epsilon), rows and columns normalised by turns."""
    source, key = Prototypes(C, D, 0.5, balance="sinkhorn", iterations=iterations).double(), rows(1, B, D, seed=1)
    ((_, candidates),) = source(rows(1, B, D), key, torch.arange(B))
    unit = [x / x.norm(dim=1, keepdim=True) for x in (key[0].detach(), source.vectors.detach())]
    q = (unit[0] @ unit[1].T / 0.5).exp().T  # [K, B]
    for _ in range(iterations):
        q = q / q.sum(dim=1, keepdim=True) / C
        q = q / q.sum(dim=0, keepdim=True) / B
    torch.testing.assert_close(teacher_targets(candidates, torch.ones(B, C, dtype=torch.bool)), (q * B).T)


def test_the_centre_and_the_averaged_prototypes_are_updated_after_the_step() -> None:
    source, key = Prototypes(C, D, 0.1, center_momentum=0.9, momentum=0.8).double(), rows(2, B, D, seed=1)
    before = source.average.clone()
    source(key, key, torch.arange(B))
    assert torch.equal(source.average, before)  # reading does not write
    assert not source.center.any()
    with torch.no_grad():
        source.vectors += 1
    source.update(key.detach(), key.detach(), torch.arange(B))
    source.advance()
    unit = [x / x.norm(dim=1, keepdim=True) for x in (key.detach().flatten(0, 1), before)]
    torch.testing.assert_close(source.center, 0.1 * (unit[0] @ unit[1].T).mean(dim=0))
    torch.testing.assert_close(source.average, 0.8 * before + 0.2 * source.vectors.detach())
    ((_, candidates), _) = source(key, key, torch.arange(B))
    assert candidates.teacher is not None
    torch.testing.assert_close(candidates.teacher.log_q, source.center / 0.1)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_centre_over_two_steps_is_the_papers(momentum: float) -> None:
    """Caron et al. 2021, eq. 4: the centre moves to the mean of what the teacher's prototypes gave in the step."""
    source, center = Prototypes(C, D, 0.1, momentum=momentum).double(), torch.zeros(C, dtype=torch.float64)
    teacher = source.vectors.detach().clone()
    for step in range(3):
        key = rows(2, B, D, seed=step).detach()
        ((_, candidates), _) = source(rows(2, B, D), key, torch.arange(B))
        assert candidates.teacher is not None
        torch.testing.assert_close(candidates.teacher.log_q, center / 0.1)
        torch.testing.assert_close(candidates.teacher.vectors, teacher)
        with torch.no_grad():  # the optimiser's step
            source.vectors += rows(C, D, seed=10 + step)
        source.update(key, key, torch.arange(B))
        source.advance()
        given = torch.stack([torch.stack([cosine(k, w) for w in teacher]) for k in key.flatten(0, 1)])
        center = 0.9 * center + 0.1 * given.mean(dim=0)
        teacher = momentum * teacher + (1 - momentum) * source.vectors.detach()


def test_the_prototypes_themselves_without_momentum() -> None:
    source = Prototypes(C, D).double()
    with torch.no_grad():
        source.vectors += 1
    ((_, candidates),) = source(rows(1, B, D), rows(1, B, D), torch.arange(B))
    assert candidates.teacher is not None
    assert torch.equal(candidates.teacher.vectors, source.vectors)
    assert not candidates.teacher.vectors.requires_grad


def test_bad_prototypes_are_refused() -> None:
    for size, options in ((1, {}), (4, {"balance": "none"}), (4, {"iterations": 0}), (4, {"momentum": 2.0})):
        with pytest.raises(InputError):
            Prototypes(size, D, **options)
    with pytest.raises(InputError, match="second view"):
        Prototypes(4, D)(rows(1, B, D), None, torch.arange(B))


def test_metrics_with_a_teacher() -> None:
    key = rows(1, B, D, seed=1)
    source = Prototypes(C, D, 0.1).double()
    ((query, candidates),) = source(key, key, torch.arange(B))  # the query is the teacher's: they agree
    metrics = InfoNCE(0.1).double().describe(query, candidates)
    assert metrics["agreement"] == 1
    assert metrics["uncounted"] == 0
    target = teacher_targets(candidates, torch.ones(B, C, dtype=torch.bool))
    torch.testing.assert_close(metrics["target_entropy"], -(target * target.log()).sum(dim=1).mean())
