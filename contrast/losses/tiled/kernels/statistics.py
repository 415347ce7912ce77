"""The Triton kernel of the statistics: of every query's scores what the losses need, in one pass over the candidates.

B queries, C candidates, D dimensions. Tiles, scales and units are those of `triton_tiles`.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from contrast.losses.tiled.kernels.tiles import (
    FITTING,
    INTERPRETED,
    LOG2E,
    LOWEST,
    block_of,
    columns_of_part,
    config,
    highest_of,
    low_words,
    masks_of,
    products,
)

# what does not fit into shared memory is left out while tuning; every D has room for the last
CONFIGS = [
    config(128, 128, 256, 0, 8, 2),
    config(128, 64, 256, 0, 8, 3),
    config(128, 128, 128, 0, 8, 3),
    config(64, 128, 128, 0, 4, 3),
    config(128, 128, 64, 0, 8, 4),
    config(128, 64, 64, 0, 4, 3),
    config(64, 64, 16, 0, 4, 2),
]
if INTERPRETED.value:
    CONFIGS = [config(32, 32, 16, 0, 1, 1)]
KEY = ["D", "LOGISTIC", "HARD", "IDS", "GROUPS", "OWN", "PRECISION"]  # and the dtypes


@triton.autotune(CONFIGS, KEY, prune_configs_by=FITTING)
@triton.jit(do_not_specialize=["B", "C"])
def statistics(
    query, vectors, row_scale, column_scale, offset, query_ids, ids, query_groups, groups, own, out, B, C, hardness,
    D: tl.constexpr, LOGISTIC: tl.constexpr, HARD: tl.constexpr, IDS: tl.constexpr, GROUPS: tl.constexpr,
    OWN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out [parts, 8, B]: of the negatives the highest score, the sums of exp2(s - highest) and of
    exp2(hardness (s - highest)); of the positives the number, the highest score, the sum of exp2 and that of scores;
    the number of the candidates that are neither.

    HARD      the first sum is of exp2((1 + hardness) (s - highest))
    LOGISTIC  it is that of softplus(s) over the negatives and softplus(-s) over the positives; only it and the numbers
              are written
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    first, end = columns_of_part(C, BLOCK_N)
    row = tl.load(row_scale + rows, mask=rows < B, other=0.0) * LOG2E
    i_ids, i_groups = low_words(query_ids, rows, B, IDS), low_words(query_groups, rows, B, GROUPS)
    i_own = low_words(own, rows, B, OWN)
    highest = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    total_hard = tl.zeros([BLOCK_M], tl.float32)
    positives = tl.zeros([BLOCK_M], tl.int32)
    highest_pos = tl.full([BLOCK_M], LOWEST, tl.float32)
    total_pos = tl.zeros([BLOCK_M], tl.float32)
    sum_pos = tl.zeros([BLOCK_M], tl.float32)
    neither = tl.zeros([BLOCK_M], tl.int32)
    kept = row
    if BLOCK_D >= D:
        kept = block_of(query, rows, B, 0, D, BLOCK_D)
    for start in range(first, end, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        scores, _vectors = products(kept, query, vectors, rows, columns, B, C, D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION)
        column = tl.load(column_scale + columns, mask=columns < C, other=0.0)
        shift = tl.load(offset + columns, mask=columns < C, other=float("-inf")) * LOG2E
        scores = scores * column[None, :] * row[:, None] + shift[None, :]
        j_ids, j_groups = low_words(ids, columns, C, IDS), low_words(groups, columns, C, GROUPS)
        top = highest_of(scores, rows, columns, i_ids, j_ids, i_groups, j_groups, i_own, True, IDS, GROUPS, OWN)
        if tl.max(top, axis=0) == float("inf"):  # some pair is no negative
            positive, negative = masks_of(
                scores, rows, B, columns, C, query_ids, ids, query_groups, groups, own, True, IDS, GROUPS, OWN
            )  # fmt: skip
            neither += tl.sum(((scores != float("-inf")) & (negative == 0)).to(tl.int32), axis=1)
            masked = tl.where(negative, scores, float("-inf"))
            if IDS:
                only = tl.where(positive, scores, float("-inf"))
                some = tl.sum((only != float("-inf")).to(tl.int32), axis=1)
                positives += some
                neither -= some
                if LOGISTIC:
                    masked = tl.where(positive, -scores, masked)
                else:
                    sum_pos += tl.sum(tl.where(positive, scores, 0.0), axis=1)
                    higher = tl.maximum(highest_pos, tl.max(only, axis=1))
                    part = tl.sum(tl.exp2(only - higher[:, None]), axis=1)
                    total_pos = total_pos * tl.exp2(highest_pos - higher) + part
                    highest_pos = higher
            scores, top = masked, tl.max(masked, axis=1)
        if LOGISTIC:
            # softplus(s) = max(s, 0) + log(1 + u), u = exp(-|s|); y = 1 + u drops digits of u, which are added
            u = tl.exp2(-tl.abs(scores))
            y = 1 + u
            total += tl.sum(tl.maximum(scores, 0.0) + (tl.log2(y) + (u - (y - 1)) * LOG2E), axis=1)
        else:
            higher = tl.maximum(highest, top)
            gap, fall = scores - higher[:, None], highest - higher
            if HARD:
                total_hard = total_hard * tl.exp2(hardness * fall) + tl.sum(tl.exp2(hardness * gap), axis=1)
                gap, fall = (1 + hardness) * gap, (1 + hardness) * fall
            total = total * tl.exp2(fall) + tl.sum(tl.exp2(gap), axis=1)
            highest = higher
    at = out + tl.program_id(2).to(tl.int64) * 8 * B + rows
    tl.store(at, highest, mask=rows < B)
    tl.store(at + B, total / LOG2E if LOGISTIC else total, mask=rows < B)
    tl.store(at + 2 * B, total_hard, mask=rows < B)
    tl.store(at + 3 * B, positives.to(tl.float32), mask=rows < B)
    tl.store(at + 4 * B, highest_pos, mask=rows < B)
    tl.store(at + 5 * B, total_pos, mask=rows < B)
    tl.store(at + 6 * B, sum_pos, mask=rows < B)
    tl.store(at + 7 * B, neither.to(tl.float32), mask=rows < B)
