"""The tiled losses on CUDA: Triton's kernels under autograd, by the same rules and statistics as the tiles in torch.

B queries, C candidates, D dimensions, W ranks; N vectors of either side. Scores are scale * similarity + offset.

No list of pairs is made and no number is read back, so the host never waits for the device. The memory kept for the
backward pass is linear in B and C. The inputs keep their precision: products of half-precision vectors are exact, and
lengths, scores and losses are float32. Gradients are sums of products of slopes in the precision of the inputs, added
up in float32. Products of float32 inputs are float32 unless PyTorch is set to use TF32
(`torch.set_float32_matmul_precision("high")`).
"""

import importlib.util
import math
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contrast.candidates import ABSENT, Candidates
from contrast.distributed import gather
from contrast.errors import InputError

LOWEST = torch.finfo(torch.float32).min
LN2 = math.log(2)


def can_run(query: Tensor, candidates: Candidates, has_margin: bool) -> bool:
    """Whether the kernels can score these candidates: not with a margin on shared ones, and not with rules [B, C]."""
    vectors, rules = candidates.vectors, (candidates.ids, candidates.excluded_groups, candidates.log_q)
    return (
        usable(query)
        and usable(vectors)
        and len(query) > 0
        and vectors.ndim == 2
        and len(vectors) > 0
        and all(rule is None or rule.ndim == 1 for rule in rules)
        and not (has_margin and candidates.ids is not None)
    )


def usable(tensor: Tensor) -> bool:
    """Whether the kernels can run on tensors like this one."""
    return tensor.is_cuda and _able(tensor.device, tensor.dtype)


@cache
def _able(device: torch.device, dtype: torch.dtype) -> bool:
    if torch.version.hip is not None or importlib.util.find_spec("triton") is None:
        return False
    least = {torch.float32: (7, 0), torch.float16: (7, 0), torch.bfloat16: (8, 0)}.get(dtype)
    return least is not None and torch.cuda.get_device_capability(device) >= least


class Side(NamedTuple):
    """Queries, candidates, or both: N of them."""

    vectors: Tensor  # [N, D], contiguous
    scale: Tensor  # [N] float32, 0 of a zero vector; a score is the product of both vectors and both scales
    ids: Tensor | None  # [N] int64
    groups: Tensor | None
    own: Tensor | None  # [N] int64, of queries: their own columns among the candidates
    offset: Tensor | None  # [N] float32, of candidates; -inf: it does not count
    stats: Tensor | None = None  # [6, N] float32, of queries, for `gradient`: see `kernels.gradients.gradients`


class KernelArgs(NamedTuple):
    """The inputs of both losses.

    query   [B, D] float32, bfloat16 or float16
    vectors [C, D] of the same type; None: the queries, with `both`
    scale   scalar float32, 1 / temperature
    offset  [C] float32, -inf: the candidate does not count; or None
    cosine  similarities are cosines; False: dot products
    rules   Candidates, whose vectors are not read
    both    the vectors are the queries of all ranks, without gradient, the rules are symmetric and there is no offset.
            The queries then get the gradients of both roles, from the losses of all ranks
    """

    query: Tensor
    vectors: Tensor | None
    scale: Tensor
    offset: Tensor | None
    cosine: bool
    rules: Candidates
    both: bool = False


class SoftmaxStatistics(torch.autograd.Function):
    """(lse_neg, lse_pos, mean_pos, positives, negatives), each [B], as `contrast.losses.softmax.Statistics`.

    Applied to `KernelArgs`, spread out, and the hardness of `contrast.losses.softmax.statistics`.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        args, hardness = KernelArgs(*arguments[:-1]), arguments[-1]
        sums, present = _statistics(args, hardness, logistic=False)
        highest, total, total_hard, count_pos, highest_pos, total_pos, sum_pos, neither = sums.unbind(1)  # [parts, B]
        positives = count_pos.sum(0).long()  # [B]
        negatives = present - positives - neither.sum(0).long()
        lse_raised = torch.where(negatives > 0, _lse(highest, total, 1 + hardness), 0)
        lse_hard = torch.where(negatives > 0, _lse(highest, total_hard, hardness), 0)
        lse_pos = torch.where(positives > 0, _lse(highest_pos, total_pos), 0)
        ctx.save_for_backward(*args[:4], lse_raised, lse_hard, lse_pos, positives)
        ctx.rest, ctx.hardness = args[4:], hardness
        ctx.mark_non_differentiable(positives, negatives)
        lse_neg = lse_raised - lse_hard + negatives.clamp(min=1).log2() if hardness else lse_raised
        return (
            torch.where(negatives > 0, lse_neg * LN2, LOWEST),
            torch.where(positives > 0, lse_pos * LN2, LOWEST),
            sum_pos.sum(0) * LN2 / positives.clamp(min=1),
            positives,
            negatives,
        )

    @staticmethod
    def backward(ctx: Any, of_neg: Tensor, of_pos: Tensor, of_mean: Tensor, *_: object) -> tuple[Tensor | None, ...]:
        _check_first_derivative()
        *inputs, lse_raised, lse_hard, lse_pos, positives = ctx.saved_tensors
        stats = torch.stack([lse_raised, lse_hard, lse_pos, of_neg, of_pos, of_mean / positives.clamp(min=1)])
        result = _gradients(ctx, KernelArgs(*inputs, *ctx.rest), stats, ctx.hardness, logistic=False)
        return *result, None, None, None, None


class LogisticSums(torch.autograd.Function):
    """Sum of softplus(s) over the negatives and softplus(-s) over the positives of every query, [B]; positives [B].

    Applied to `KernelArgs`, spread out.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        args = KernelArgs(*arguments)
        sums, _ = _statistics(args, 0.0, logistic=True)
        positives = sums[:, 3].sum(0).long()
        ctx.save_for_backward(*args[:4])
        ctx.rest = args[4:]
        ctx.mark_non_differentiable(positives)
        return sums[:, 1].sum(0), positives

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: object) -> tuple[Tensor | None, ...]:
        _check_first_derivative()
        stats = grad.new_zeros(6, len(grad))
        stats[3] = grad
        return *_gradients(ctx, KernelArgs(*ctx.saved_tensors, *ctx.rest), stats, 0.0, logistic=True), None, None, None


def gradient(
    mine: Side,
    others: Side,
    queries: bool,
    candidates: bool,
    logistic: bool = False,
    hardness: float = 0.0,
    of_offset: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Sum over the others of d loss / d score times their scaled vectors, [N, D] float32; gradient of the offset [N].

    queries     whether my side holds the queries
    candidates  whether my side holds the candidates of the others. With `queries`, for symmetric rules, the result is
                the whole gradient of my scaled vectors. Mine may then be this rank's side, and the others those of all
                ranks, with their stats
    of_offset   whether the second result is computed: of the candidates, if they are mine
    """
    from contrast.losses.tiled.kernels.gradients import gradients

    (count, dimensions), columns = mine.vectors.shape, len(others.vectors)
    own = mine.own if queries else others.own
    parts = shared_by(count, columns, mine.vectors.device)
    out = mine.scale.new_empty(parts, count, dimensions)
    sums = mine.scale.new_empty(parts, count) if of_offset else None
    factor = _factor(mine, others, hardness)
    my_stats, their_stats = (None if x.stats is None else _times(x.stats, factor) for x in (mine, others))
    with torch.cuda.device_of(mine.vectors):
        grid = lambda meta: (-(-count // meta["BLOCK_M"]), -(-dimensions // meta["OUT_D"]), parts)  # noqa: E731
        gradients[grid](
            mine.vectors, others.vectors, mine.scale, others.scale, mine.offset, others.offset, mine.ids, others.ids,
            mine.groups, others.groups, own, my_stats, their_stats, out, sums, count, columns, float(hardness),
            D=dimensions, Q_ROWS=queries, Q_COLS=candidates, LOGISTIC=logistic, HARD=hardness > 0,
            IDS=mine.ids is not None, GROUPS=mine.groups is not None, OWN=own is not None, OF_OFFSET=of_offset,
            PRECISION=_precision(),
        )  # fmt: skip
    total, sums = out[0] if parts == 1 else out.sum(0), None if sums is None else sums.sum(0)
    return (total, sums) if factor is None else (total.div_(factor), None if sums is None else sums.div_(factor))


def shared_by(rows: int, columns: int, device: torch.device) -> int:
    """How many programs share the columns of a block of rows: several if the blocks alone do not fill the device."""
    if device.type != "cuda":
        return 1
    blocks, room = -(-rows // 128), 2 * torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(room // blocks, columns // 1024))


def _statistics(args: KernelArgs, hardness: float, logistic: bool) -> tuple[Tensor, Tensor]:
    """The output of the statistics kernel, [parts, 8, B], and the number of candidates that are present."""
    from contrast.losses.tiled.kernels.statistics import statistics

    q, c = _sides(args)
    (rows, dimensions), columns = q.vectors.shape, len(c.vectors)
    assert c.offset is not None
    parts = shared_by(rows, columns, q.vectors.device)
    out = q.scale.new_empty(parts, 8, rows)
    with torch.cuda.device_of(q.vectors):
        statistics[lambda meta: (-(-rows // meta["BLOCK_M"]), 1, parts)](
            q.vectors, c.vectors, q.scale, c.scale, c.offset, q.ids,
            c.ids, q.groups, c.groups, q.own, out, rows, columns, float(hardness),
            D=dimensions, LOGISTIC=logistic, HARD=hardness > 0, IDS=c.ids is not None,
            GROUPS=c.groups is not None, OWN=q.own is not None, PRECISION=_precision(),
        )  # fmt: skip
    return out, (c.offset > -torch.inf).sum()


def _gradients(
    ctx: Any, inputs: KernelArgs, stats: Tensor, hardness: float, logistic: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of query, vectors, scale and offset."""
    query, vectors, scale, cosine = inputs.query, inputs.vectors, inputs.scale, inputs.cosine
    q, c = _sides(inputs)
    q = q._replace(stats=stats.contiguous())
    if inputs.both:
        # no gradients are summed over ranks: each rank computes the gradients of its rows from the losses of all
        everybody = q if vectors is None else c._replace(stats=gather(stats.T).T.contiguous())
        total, _ = gradient(q, everybody, True, True, logistic, hardness)
        of_both, sum_of_both = _through_scale(total, q, scale.sqrt(), cosine)
        return of_both.to(query.dtype), None, sum_of_both / (2 * scale), None
    assert vectors is not None
    of_query = of_vectors = of_offset = None
    _, wants_vectors, _, wants_offset = ctx.needs_input_grad[:4]
    if wants_vectors or wants_offset:
        total, of_offset = gradient(c, q, False, True, logistic, hardness, of_offset=wants_offset)
        result, along = _through_scale(total, c, torch.ones_like(scale), cosine)
        of_vectors = result.to(vectors.dtype)
    if ctx.needs_input_grad[0] or of_vectors is None:
        total, _ = gradient(q, c, True, False, logistic, hardness)
        result, along = _through_scale(total, q, scale, cosine)
        of_query = result.to(query.dtype)
    return of_query, of_vectors, along / scale, of_offset


def _through_scale(total: Tensor, side: Side, factor: Tensor, cosine: bool) -> tuple[Tensor, Tensor]:
    """The gradient of the vectors from that of the scaled vectors [N, D], and the sum of score * d loss / d score.

    The scale of a vector z is a = factor / |z|, for cosines: its gradient is a (total - (total . z) z / |z|^2), at a
    right angle to z. A zero vector is not divided by its length, as in `contrast.losses.similarity.unit`.
    """
    along = (total * side.vectors).sum(dim=1)  # [N, D] x [N, D] -> [N], in float32 whatever the TF32 setting is
    scores = (side.scale * along).sum()
    total.mul_(torch.where(side.scale > 0, side.scale, factor)[:, None])
    if cosine:
        total -= (side.scale * (side.scale / factor).square() * along)[:, None] * side.vectors
    return total, scores


def _sides(args: KernelArgs) -> tuple[Side, Side]:
    """Queries and candidates; the same for queries that are their own candidates."""
    query, vectors, scale, offset, cosine, rules, both = args
    grouped = rules.excluded_groups is not None
    ids, groups = (None if rules.ids is None else rules.query_ids, rules.query_groups if grouped else None)
    present = query.new_zeros(len(rules), dtype=torch.float32) if offset is None else offset.float()
    present = _present(present, rules.ids, rules.excluded_groups).contiguous()
    scale = scale.sqrt() if both else scale
    q = Side(
        query.contiguous(), _scaled(query, scale, cosine), _contiguous(ids), _contiguous(groups),
        _contiguous(rules.self_index), present,
    )  # fmt: skip
    if vectors is None:
        return q, q
    if both:
        q = q._replace(offset=_present(q.scale.new_zeros(len(query)), ids, groups))
    scaled = _scaled(vectors, scale if both else torch.ones_like(scale), cosine)
    return q, Side(
        vectors.contiguous(), scaled, _contiguous(rules.ids), _contiguous(rules.excluded_groups), None, present
    )


def _present(offset: Tensor, *rules: Tensor | None) -> Tensor:
    """The offset [N] with -inf where an id or a group is ABSENT."""
    for rule in rules:
        if rule is not None:
            offset = offset.masked_fill(rule == ABSENT, -torch.inf)
    return offset


def _contiguous(rule: Tensor | None) -> Tensor | None:
    return None if rule is None else rule.contiguous()


def _scaled(vectors: Tensor, factor: Tensor, cosine: bool) -> Tensor:
    """factor / length of each vector, [N, D] -> [N] float32, 0 for a zero vector; without cosine the factor."""
    if not cosine:
        return factor.expand(len(vectors)).contiguous()
    length = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float32)
    return torch.where(length > 0, factor / length, 0)


def _lse(highest: Tensor, total: Tensor, power: float = 1.0) -> Tensor:
    """log2 of the sum of 2^(power s) over all parts, [parts, B] -> [B].

    highest  the highest s of each part
    total    the sum of 2^(power (s - highest)) of each part
    """
    top = highest.amax(0)
    return power * top + (total * torch.exp2(power * (highest - top))).sum(0).log2()


def _factor(mine: Side, others: Side, hardness: float) -> Tensor | None:
    """The factor on gradients with which float16 holds the slopes, the important ones as normal numbers; or None."""
    if mine.vectors.dtype != torch.float16:
        return None
    highest = torch.stack([side.stats[3:].abs().amax() for side in (mine, others) if side.stats is not None]).amax()
    # a pair's slope has two roles, and a positive has two terms
    bound = 4 * (1 + 2 * hardness) * highest * others.scale.amax()
    return 2.0**15 / bound.clamp(min=1e-30)


def _times(stats: Tensor, factor: Tensor | None) -> Tensor:
    return stats if factor is None else torch.cat([stats[:3], stats[3:] * factor])


def _precision() -> str:
    """The precision of products of float32, as PyTorch's own are set."""
    try:
        fast = torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # the newer of PyTorch's two settings was used, next to the older
        fast = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if fast else "ieee"


def _check_first_derivative() -> None:
    if torch.is_grad_enabled():  # create_graph=True
        raise InputError("the fused kernels have no second derivative: tiled=false computes it from the whole matrix")
