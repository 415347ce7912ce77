"""The Triton kernel of the gradients, which computes the tiles of scores again.

One side has M rows, which the gradient is of, the other N columns: queries and candidates, candidates and queries, or
both roles at once; D dimensions. Tiles, scales and units are those of `triton_tiles`. Slopes are rounded to the type of
the inputs for the second product: half precision takes 2^-9 (bfloat16) or 2^-12 of each from the gradients, nothing
from the losses.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from contrast.losses.tiled.kernels.tiles import (
    FITTING,
    INTERPRETED,
    LOG2E,
    block_of,
    columns_of_part,
    config,
    highest_of,
    low_words,
    masks_of,
    product,
    products,
)

# what does not fit into shared memory is left out while tuning; every D has room for the last
CONFIGS = [
    config(64, 64, 512, 512, 8, 2),
    config(64, 64, 128, 512, 8, 2),
    config(64, 64, 64, 512, 8, 3),
    config(128, 64, 256, 256, 8, 2),
    config(64, 64, 256, 256, 4, 2),
    config(128, 64, 64, 256, 8, 3),
    config(128, 128, 128, 128, 8, 2),
    config(128, 64, 128, 128, 8, 3),
    config(64, 64, 128, 128, 4, 3),
    config(64, 64, 64, 64, 4, 3),
    config(64, 64, 16, 16, 4, 2),
]
if INTERPRETED.value:
    CONFIGS = [config(32, 32, 16, 32, 1, 1)]
KEY = ["D", "Q_ROWS", "Q_COLS", "LOGISTIC", "HARD", "IDS", "GROUPS", "OWN", "OF_OFFSET", "PRECISION"]  # and the dtypes


@triton.jit
def _stat(stats, which, index, count, other):
    """Row `which` of [6, count]; `other` beyond the edge."""
    return tl.load(stats + which * count + index, mask=index < count, other=other)


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
def _of_pairs(
    scores, positive, negative, lse, lse_hard, g, lse_pos, g_pos, g_mean, hardness,
    LOGISTIC: tl.constexpr, HARD: tl.constexpr, IDS: tl.constexpr,
):  # fmt: skip
    """d loss / d score, 0 of what does not count."""
    slopes = tl.where(negative, _of_negatives(scores, lse, lse_hard, g, hardness, LOGISTIC, HARD), 0.0)
    if IDS:
        own = -g / (1 + tl.exp2(scores)) if LOGISTIC else g_pos * tl.exp2(scores - lse_pos) + g_mean
        slopes = tl.where(positive, own, slopes)
    return slopes


@triton.autotune(CONFIGS, KEY, prune_configs_by=FITTING)
@triton.jit(do_not_specialize=["M", "N"])
def gradients(
    mine, others, my_scale, other_scale, my_offset, other_offset, my_ids, other_ids, my_groups, other_groups, own,
    my_stats, other_stats, out, of_offset, M, N, hardness,
    D: tl.constexpr, Q_ROWS: tl.constexpr, Q_COLS: tl.constexpr, LOGISTIC: tl.constexpr, HARD: tl.constexpr,
    IDS: tl.constexpr, GROUPS: tl.constexpr, OWN: tl.constexpr, OF_OFFSET: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, OUT_D: tl.constexpr,
):  # fmt: skip
    """out [parts, M, D]: sum over the columns of slope_ij b_j z_j, where slope is d loss / d score of a pair.

    Q_ROWS    the rows are queries and the columns candidates; Q_COLS: the other way round; both: the sum of a pair's
            two slopes, for rules that are the same both ways
    own     of the rows if they ask, else of the columns
    offset  of the candidates' side, [M] or [N]; -inf: it does not count. With OF_OFFSET, of rows that are candidates,
            of_offset [parts, M] is its gradient
    stats   [6, M] and [6, N] of the queries' side: the log-sum-exps of the negatives, of hardness * s, of the
            positives; gradients of the first, of the third, of the sum of the positives' scores
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    dimension = tl.program_id(1) * OUT_D
    first, end = columns_of_part(N, BLOCK_N)
    row = tl.load(my_scale + rows, mask=rows < M, other=0.0) * LOG2E
    i_ids, i_groups = low_words(my_ids, rows, M, IDS), low_words(my_groups, rows, M, GROUPS)
    if Q_ROWS:
        i_own = low_words(own, rows, M, OWN)
        i_lse, i_hard = _stat(my_stats, 0, rows, M, 0.0)[:, None], _stat(my_stats, 1, rows, M, 0.0)[:, None]
        i_g = _stat(my_stats, 3, rows, M, 0.0)[:, None]
    if Q_COLS:
        i_shift = tl.load(my_offset + rows, mask=rows < M, other=float("-inf")) * LOG2E
    result = tl.zeros([BLOCK_M, OUT_D], tl.float32)
    sums = tl.zeros([BLOCK_M], tl.float32)
    kept = row
    if BLOCK_D >= D:
        kept = block_of(mine, rows, M, 0, D, BLOCK_D)
    for start in range(first, end, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        scores, block = products(kept, mine, others, rows, columns, M, N, D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION)
        column = tl.load(other_scale + columns, mask=columns < N, other=0.0)
        scores = scores * column[None, :] * row[:, None]
        owns = low_words(own, columns, N, OWN and not Q_ROWS)
        if Q_COLS:  # lse inf: the slope of what is beyond the edge is 0
            s_j = scores + i_shift[:, None]
            j_lse = _stat(other_stats, 0, columns, N, float("inf"))[None, :]
            j_hard = _stat(other_stats, 1, columns, N, float("inf"))[None, :]
            j_g = _stat(other_stats, 3, columns, N, 0.0)[None, :]
        if Q_ROWS:
            owns = i_own
            s_i = scores + tl.load(other_offset + columns, mask=columns < N, other=float("-inf"))[None, :] * LOG2E
        j_ids, j_groups = low_words(other_ids, columns, N, IDS), low_words(other_groups, columns, N, GROUPS)
        top = highest_of(scores, rows, columns, i_ids, j_ids, i_groups, j_groups, owns, Q_ROWS, IDS, GROUPS, OWN)
        if tl.max(top, axis=0) < float("inf"):
            if Q_ROWS:
                slopes = _of_negatives(s_i, i_lse, i_hard, i_g, hardness, LOGISTIC, HARD)
            if Q_COLS:
                of_columns = _of_negatives(s_j, j_lse, j_hard, j_g, hardness, LOGISTIC, HARD)
                slopes = slopes + of_columns if Q_ROWS else of_columns
        else:  # some pair is no negative
            if Q_ROWS:
                positive, negative = masks_of(
                    s_i, rows, M, columns, N, my_ids, other_ids, my_groups, other_groups, own, Q_ROWS, IDS, GROUPS, OWN
                )  # fmt: skip
                lse_pos, g_pos = _stat(my_stats, 2, rows, M, 0.0)[:, None], _stat(my_stats, 4, rows, M, 0.0)[:, None]
                g_mean = _stat(my_stats, 5, rows, M, 0.0)[:, None]
                slopes = _of_pairs(
                    s_i, positive, negative, i_lse, i_hard, i_g, lse_pos, g_pos, g_mean, hardness,
                    LOGISTIC, HARD, IDS,
                )  # fmt: skip
            if Q_COLS:
                positive, negative = masks_of(
                    s_j, rows, M, columns, N, my_ids, other_ids, my_groups, other_groups, own, Q_ROWS, IDS, GROUPS, OWN
                )  # fmt: skip
                j_lse_pos = _stat(other_stats, 2, columns, N, float("inf"))[None, :]
                j_g_pos = _stat(other_stats, 4, columns, N, 0.0)[None, :]
                j_g_mean = _stat(other_stats, 5, columns, N, 0.0)[None, :]
                of_columns = _of_pairs(
                    s_j, positive, negative, j_lse, j_hard, j_g, j_lse_pos, j_g_pos, j_g_mean, hardness,
                    LOGISTIC, HARD, IDS,
                )  # fmt: skip
                slopes = slopes + of_columns if Q_ROWS else of_columns
        if OF_OFFSET:
            sums += tl.sum(slopes, axis=1)
        if BLOCK_D < D or BLOCK_D != OUT_D:
            block = block_of(others, columns, N, dimension, D, OUT_D)
        weights = (slopes * column[None, :]).to(others.dtype.element_ty)
        result = product(weights, block, result, PRECISION)  # [M, N] x [N, d] -> [M, d]
    part = tl.program_id(2).to(tl.int64) * M
    wide = dimension + tl.arange(0, OUT_D)
    at = out + (part + rows)[:, None] * D + wide[None, :]
    tl.store(at, result, mask=(rows < M)[:, None] & (wide < D)[None, :])
    if OF_OFFSET:
        tl.store(of_offset + part + rows, sums, mask=(rows < M) & (dimension == 0))
