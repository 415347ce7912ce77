"""Triton kernels of the tiled losses: statistics of every query's scores, and gradients, with no [B, C] in memory.

B queries, C candidates, D dimensions. In the gradients' kernel one side has M rows, which the gradient is of, the other
N columns: queries and candidates, candidates and queries, or both roles at once.

Scores are a_i b_j (q_i . c_j) + o_j. The products are of the inputs as they came, exact in half precision, added up in
float32; the scales a and b hold 1 / length and 1 / temperature, so that nothing is rounded to half precision before the
product. In here scores and log-sum-exps are in units of ln 2, which spares exp2 a multiplication.

Which pairs count is decided by the rules of `contrast.candidates`. Of most tiles every pair is a negative; only where
one is not does a program take the branch that masks them and looks for positives.

D need not be a power of two: products run over blocks of BLOCK_D dimensions, gradients are written OUT_D dimensions at
a time (more than one such block repeats the first product). No atomics: the same input gives the same bits.

Importing this needs triton. With TRITON_INTERPRET=1 at that time the kernels run on the CPU, with one fixed tile size.
Kept out for the interpreter's sake: libdevice's log1p, which it lacks; reductions with a function of one's own, which
it does one element at a time.
"""
# mypy: allow-untyped-defs

import os
from typing import Any

import triton
import triton.language as tl

from contrast import candidates

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # of float32: no -inf, whose differences are NaN
ABSENT = tl.constexpr(candidates.ABSENT)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def _config(rows: int, columns: int, block_d: int, out_d: int | None, warps: int, stages: int) -> triton.Config:
    blocks = {"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_D": block_d} | ({} if out_d is None else {"OUT_D": out_d})
    return triton.Config(blocks, num_warps=warps, num_stages=stages)


def _fitting(configs: list[Any], arguments: dict[str, Any], **more: Any) -> list[Any]:
    """Those whose blocks of dimensions are no wider than D, which is rounded up to a power of two."""
    width = max(triton.next_power_of_2((arguments | more)["D"]), 16)
    fit = [c for c in configs if max(c.kwargs["BLOCK_D"], c.kwargs.get("OUT_D", 0)) <= width]
    return fit or configs[-1:]


# the last of each list fits every D of at least 16; what does not fit the shared memory is left out when tuning
FORWARD = [
    _config(128, 128, 256, None, 8, 2),
    _config(128, 64, 256, None, 8, 3),
    _config(128, 128, 128, None, 8, 3),
    _config(64, 128, 128, None, 4, 3),
    _config(128, 256, 64, None, 8, 3),
    _config(128, 128, 64, None, 8, 4),
    _config(128, 128, 32, None, 8, 4),
    _config(64, 64, 16, None, 4, 2),
]
GRADIENT = [
    _config(64, 64, 512, 512, 8, 2),
    _config(128, 64, 64, 512, 8, 2),
    _config(64, 64, 64, 512, 8, 3),
    _config(128, 64, 256, 256, 8, 2),
    _config(64, 64, 256, 256, 4, 2),
    _config(128, 64, 64, 256, 8, 3),
    _config(128, 128, 128, 128, 8, 2),
    _config(128, 64, 128, 128, 8, 3),
    _config(64, 64, 128, 128, 4, 3),
    _config(64, 64, 64, 64, 4, 3),
    _config(64, 64, 16, 16, 4, 2),
]
if INTERPRETED:
    FORWARD, GRADIENT = [_config(16, 16, 16, None, 1, 1)], [_config(16, 16, 16, 32, 1, 1)]
PRUNE = {"early_config_prune": _fitting}


@triton.jit
def _block(base, rows, count, start, D: tl.constexpr, WIDTH: tl.constexpr):
    """`rows` of a matrix [count, D] from dimension `start` on, [rows, WIDTH]; 0 beyond its edges."""
    columns = start + tl.arange(0, WIDTH)
    at = base + rows.to(tl.int64)[:, None] * D + columns[None, :]
    return tl.load(at, mask=(rows < count)[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def _products(
    mine, others, rows, columns, M, N, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, D, BLOCK_D):
        left = _block(mine, rows, M, start, D, BLOCK_D)
        right = _block(others, columns, N, start, D, BLOCK_D)
        total = tl.dot(left, tl.trans(right), total, input_precision=PRECISION)  # [M, d] x [d, N] -> [M, N]
    return total


@triton.jit
def _candidates(index, count, ids, groups, offset, IDS: tl.constexpr, GROUPS: tl.constexpr, OFFSET: tl.constexpr):
    """Whether the candidates `index` count at all, their ids, groups and offsets; what has no rule is not looked at."""
    there = index < count
    their_ids, their_groups, shift = index, index, tl.zeros_like(index).to(tl.float32)
    if IDS:
        their_ids = tl.load(ids + index, mask=there, other=ABSENT)
        there = there & (their_ids != ABSENT)
    if GROUPS:
        their_groups = tl.load(groups + index, mask=index < count, other=ABSENT)
        there = there & (their_groups != ABSENT)
    if OFFSET:
        shift = tl.load(offset + index, mask=index < count, other=0.0) * LOG2E
        there = there & (shift > float("-inf"))
    return there, their_ids, their_groups, shift


@triton.jit
def _queries(index, count, ids, groups, own, IDS: tl.constexpr, GROUPS: tl.constexpr, OWN: tl.constexpr):
    """Ids and groups of the queries `index`, and the columns that are they themselves."""
    their_ids, their_groups, their_own = index, index, index
    if IDS:
        their_ids = tl.load(ids + index, mask=index < count, other=ABSENT)
    if GROUPS:
        their_groups = tl.load(groups + index, mask=index < count, other=ABSENT)
    if OWN:
        their_own = tl.load(own + index, mask=index < count, other=-1)
    return their_ids, their_groups, their_own


@triton.jit
def _pairs(
    query_ids, query_groups, own, ids, groups, index, there, IDS: tl.constexpr, GROUPS: tl.constexpr, OWN: tl.constexpr
):
    """(positive, negative) of queries and candidates, one side [M, 1] and the other [1, N]."""
    counts = there
    if OWN:
        counts = counts & (own != index)
    positive, negative = counts, counts  # without ids none is positive, and nobody asks
    if IDS:
        positive = counts & (query_ids == ids)
        negative = counts & (query_ids != ids)
    if GROUPS:
        negative = negative & (query_groups != groups)
    return positive, negative


@triton.jit
def _share(columns, BLOCK_N: tl.constexpr):
    """First and last of the columns that this program goes through: they are shared by program_id(2)."""
    step = tl.cdiv(tl.cdiv(columns, tl.num_programs(2)), BLOCK_N) * BLOCK_N
    first = tl.program_id(2) * step
    return first, tl.minimum(first + step, columns)


@triton.autotune(FORWARD, key=["D", "IDS", "HARD"], prune_configs_by=PRUNE)
@triton.jit
def softmax_statistics(
    query, vectors, row_scale, column_scale, offset, query_ids, ids, query_groups, groups, own, out, B, C, hardness,
    D: tl.constexpr, IDS: tl.constexpr, GROUPS: tl.constexpr, OWN: tl.constexpr, OFFSET: tl.constexpr,
    HARD: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out [parts, 8, B]: of the negatives the maximum, the sums of exp2(s - it) and of exp2(hardness (s - it)), their
    number; of the positives maximum, sum of exp2, sum of scores, number. With HARD the first sum is of
    exp2((1 + hardness) (s - maximum)).
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    first, last = _share(C, BLOCK_N)
    row = tl.load(row_scale + rows, mask=rows < B, other=0.0) * LOG2E
    my_ids, my_groups, my_own = _queries(rows, B, query_ids, query_groups, own, IDS, GROUPS, OWN)
    highest = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    total_hard = tl.zeros([BLOCK_M], tl.float32)
    negatives = tl.zeros([BLOCK_M], tl.int32)
    highest_pos = tl.full([BLOCK_M], LOWEST, tl.float32)
    total_pos = tl.zeros([BLOCK_M], tl.float32)
    sum_pos = tl.zeros([BLOCK_M], tl.float32)
    positives = tl.zeros([BLOCK_M], tl.int32)
    if BLOCK_D >= D:
        kept = _block(query, rows, B, 0, D, BLOCK_D)
    for start in range(first, last, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        if BLOCK_D >= D:
            block = _block(vectors, columns, C, 0, D, BLOCK_D)
            scores = tl.dot(kept, tl.trans(block), input_precision=PRECISION)  # [M, D] x [D, N] -> [M, N]
        else:
            scores = _products(query, vectors, rows, columns, B, C, D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION)
        column = tl.load(column_scale + columns, mask=columns < C, other=0.0)
        there, its_ids, its_groups, shift = _candidates(columns, C, ids, groups, offset, IDS, GROUPS, OFFSET)
        scores = scores * column[None, :] * row[:, None]
        if OFFSET:
            scores += shift[None, :]
        positive, negative = _pairs(
            my_ids[:, None], my_groups[:, None], my_own[:, None], its_ids[None, :], its_groups[None, :],
            columns[None, :], there[None, :], IDS, GROUPS, OWN,
        )  # fmt: skip
        negative = tl.broadcast_to(negative, [BLOCK_M, BLOCK_N])
        count = tl.sum(negative.to(tl.int32), axis=1)
        negatives += count
        if tl.min(count, axis=0) < BLOCK_N:  # some pair is no negative
            if IDS:
                some = tl.sum(positive.to(tl.int32), axis=1)
                if tl.max(some, axis=0) > 0:
                    positives += some
                    only = tl.where(positive, scores, float("-inf"))
                    new = tl.maximum(highest_pos, tl.max(only, axis=1))
                    part = tl.sum(tl.exp2(only - new[:, None]), axis=1)
                    total_pos = total_pos * tl.exp2(highest_pos - new) + part
                    highest_pos = new
                    sum_pos += tl.sum(tl.where(positive, scores, 0.0), axis=1)
            scores = tl.where(negative, scores, float("-inf"))
        new = tl.maximum(highest, tl.max(scores, axis=1))
        if HARD:
            gap = scores - new[:, None]
            total_hard = total_hard * tl.exp2(hardness * (highest - new)) + tl.sum(tl.exp2(hardness * gap), axis=1)
            part = tl.sum(tl.exp2((1 + hardness) * gap), axis=1)
            total = total * tl.exp2((1 + hardness) * (highest - new)) + part
        else:
            total = total * tl.exp2(highest - new) + tl.sum(tl.exp2(scores - new[:, None]), axis=1)
        highest = new
    at = out + tl.program_id(2).to(tl.int64) * 8 * B + rows
    tl.store(at, highest, mask=rows < B)
    tl.store(at + B, total, mask=rows < B)
    tl.store(at + 2 * B, total_hard, mask=rows < B)
    tl.store(at + 3 * B, negatives.to(tl.float32), mask=rows < B)
    tl.store(at + 4 * B, highest_pos, mask=rows < B)
    tl.store(at + 5 * B, total_pos, mask=rows < B)
    tl.store(at + 6 * B, sum_pos, mask=rows < B)
    tl.store(at + 7 * B, positives.to(tl.float32), mask=rows < B)


@triton.jit
def _softplus(x):
    """log2(1 + 2^x). 1 + 2^-|x| loses a small 2^-|x|, so that there the series of the logarithm takes over."""
    small = tl.exp2(-tl.abs(x))
    series = small * (1 - small * (0.5 - small * 0.3333333333333333)) * LOG2E
    return tl.maximum(x, 0.0) + tl.where(small < 0.01, series, tl.log2(1 + small))


@triton.autotune(FORWARD, key=["D", "IDS"], prune_configs_by=PRUNE)
@triton.jit
def logistic_statistics(
    query, vectors, row_scale, column_scale, offset, query_ids, ids, query_groups, groups, own, out, B, C,
    D: tl.constexpr, IDS: tl.constexpr, GROUPS: tl.constexpr, OWN: tl.constexpr, OFFSET: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out [parts, 2, B]: sum of softplus(s) over the negatives and softplus(-s) over the positives; positives."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    first, last = _share(C, BLOCK_N)
    row = tl.load(row_scale + rows, mask=rows < B, other=0.0) * LOG2E
    my_ids, my_groups, my_own = _queries(rows, B, query_ids, query_groups, own, IDS, GROUPS, OWN)
    total = tl.zeros([BLOCK_M], tl.float32)
    positives = tl.zeros([BLOCK_M], tl.int32)
    if BLOCK_D >= D:
        kept = _block(query, rows, B, 0, D, BLOCK_D)
    for start in range(first, last, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        if BLOCK_D >= D:
            block = _block(vectors, columns, C, 0, D, BLOCK_D)
            scores = tl.dot(kept, tl.trans(block), input_precision=PRECISION)  # [M, D] x [D, N] -> [M, N]
        else:
            scores = _products(query, vectors, rows, columns, B, C, D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION)
        column = tl.load(column_scale + columns, mask=columns < C, other=0.0)
        there, its_ids, its_groups, shift = _candidates(columns, C, ids, groups, offset, IDS, GROUPS, OFFSET)
        scores = scores * column[None, :] * row[:, None]
        if OFFSET:
            scores += shift[None, :]
        positive, negative = _pairs(
            my_ids[:, None], my_groups[:, None], my_own[:, None], its_ids[None, :], its_groups[None, :],
            columns[None, :], there[None, :], IDS, GROUPS, OWN,
        )  # fmt: skip
        negative = tl.broadcast_to(negative, [BLOCK_M, BLOCK_N])
        if tl.min(tl.sum(negative.to(tl.int32), axis=1), axis=0) < BLOCK_N:  # some pair is no negative
            if IDS:
                positives += tl.sum(positive.to(tl.int32), axis=1)
                scores = tl.where(positive, -scores, tl.where(negative, scores, float("-inf")))
            else:
                scores = tl.where(negative, scores, float("-inf"))
        total += tl.sum(_softplus(scores), axis=1)
    at = out + tl.program_id(2).to(tl.int64) * 2 * B + rows
    tl.store(at, total / LOG2E, mask=rows < B)
    tl.store(at + B, positives.to(tl.float32), mask=rows < B)


@triton.jit
def _of_negatives(scores, lse, lse_hard, g, hardness, LOGISTIC: tl.constexpr, HARD: tl.constexpr):
    """d loss / d score where all pairs are negatives."""
    if LOGISTIC:
        slopes = g / (1 + tl.exp2(-scores))
    elif HARD:
        hard = hardness * tl.exp2(hardness * scores - lse_hard)
        slopes = g * ((1 + hardness) * tl.exp2((1 + hardness) * scores - lse) - hard)
    else:
        slopes = g * tl.exp2(scores - lse)
    return slopes


@triton.jit
def _of_positives(scores, lse, g, g_mean, LOGISTIC: tl.constexpr):
    """d loss / d score where all pairs are positives."""
    if LOGISTIC:  # noqa: SIM108
        slopes = -g / (1 + tl.exp2(scores))
    else:
        slopes = g * tl.exp2(scores - lse) + g_mean
    return slopes


@triton.jit
def _stats(stats, first, index, count):
    """Three numbers of each of the queries `index`: rows `first` and on of [6, count], which are the log-sum-exps of the
    negatives, that with `hardness` and that of the positives, and the gradients of the first, the third and the sum of
    the positives' scores.
    """
    at = stats + first * count + index
    return (
        tl.load(at, mask=index < count, other=0.0),
        tl.load(at + count, mask=index < count, other=0.0),
        tl.load(at + 2 * count, mask=index < count, other=0.0),
    )


@triton.autotune(GRADIENT, key=["D", "ASKS", "ASKED", "LOGISTIC", "IDS", "HARD"], prune_configs_by=PRUNE)
@triton.jit
def gradients(
    mine, others, my_scale, other_scale, offset, my_ids, other_ids, my_groups, other_groups, own, my_stats, other_stats,
    out, of_offset, M, N, hardness,
    D: tl.constexpr, ASKS: tl.constexpr, ASKED: tl.constexpr, LOGISTIC: tl.constexpr, HARD: tl.constexpr,
    IDS: tl.constexpr, GROUPS: tl.constexpr, OWN: tl.constexpr, OFFSET: tl.constexpr, OF_OFFSET: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, OUT_D: tl.constexpr,
):  # fmt: skip
    """out [parts, M, D]: sum over the other side of slope_ij b_j z_j, where slope is d loss / d score of a pair.

    ASKS   the rows are queries and the columns their candidates; ASKED: the other way round; both: the sum of both
           slopes of a pair, for rules that are the same both ways, and no offset
    own    of the rows if they ask, else of the columns
    offset of the candidates; its gradient, of_offset [parts, M], where the rows are ASKED
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    dimension = tl.program_id(1) * OUT_D
    first, last = _share(N, BLOCK_N)
    row = tl.load(my_scale + rows, mask=rows < M, other=0.0) * LOG2E
    i_there, i_ids, i_groups, i_shift = _candidates(rows, M, my_ids, my_groups, offset, IDS, GROUPS, OFFSET, not ASKS)
    if ASKS:
        i_own = _own(rows, M, own, OWN)
        lse, lse_hard, lse_pos, g, g_pos, g_mean = _stats(my_stats, rows, M)
    result = tl.zeros([BLOCK_M, OUT_D], tl.float32)
    sums = tl.zeros([BLOCK_M], tl.float32)
