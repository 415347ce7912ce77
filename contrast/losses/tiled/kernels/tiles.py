"""What the Triton kernels of the tiled losses share: a tile of scores, and which of its pairs count.

B queries, C candidates, D dimensions; M rows, N columns of a tile. Scores are a_i b_j (q_i . c_j) + o_j. The products
are of the inputs as they came, exact in half precision, and added up in float32; the scales a and b hold 1 / length and
1 / temperature, so that nothing is rounded before it is multiplied. In here scores and log-sum-exps are in units of
ln 2, for exp2.

Which pairs count follows from the rules of `contrast.candidates`. In most tiles every pair is a negative, and a test on
the low words of the ids tells; only the others are masked and looked through for positives. The masks are made anew
there, from ids read anew: kept since the test they would fill the registers.

D need not be a power of two: products go over BLOCK_D dimensions at a time, gradients are written OUT_D dimensions at a
time, and more than one such block repeats the first product. No atomics: the same input gives the same bits.

Importing this needs triton. With TRITON_INTERPRET=1 at that time the kernels run on the CPU, with one tile size. For
the interpreter's sake there is no libdevice in here (log1p), which it lacks, and no reduction with a function of one's
own, which it does element by element.
"""

# mypy: allow-untyped-defs

import os

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # of float32; no -inf, whose differences are NaN
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


def config(rows: int, columns: int, block_d: int, out_d: int, warps: int, stages: int) -> triton.Config:
    """A tile [rows, columns] over `block_d` dimensions at a time; out_d: dimensions of a gradient, or 0."""
    blocks = {"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_D": block_d} | ({"OUT_D": out_d} if out_d else {})
    return triton.Config(blocks, num_warps=warps, num_stages=stages)


def _fitting(configs: list[triton.Config], arguments: dict[str, object], **more: object) -> list[triton.Config]:
    """Those whose blocks of dimensions are no wider than D, rounded up to a power of two; at least the last."""
    width = triton.next_power_of_2((arguments | more)["D"])
    fit = [c for c in configs if max(c.kwargs["BLOCK_D"], c.kwargs.get("OUT_D", 0)) <= width]
    return fit or configs[-1:]


FITTING = {"early_config_prune": _fitting}


@triton.jit
def block_of(base, rows, count, start, D: tl.constexpr, WIDTH: tl.constexpr):
    """`rows` of a matrix [count, D] from dimension `start` on, [rows, WIDTH]; 0 beyond its edges."""
    columns = start + tl.arange(0, WIDTH)
    at = base + rows.to(tl.int64)[:, None] * D + columns[None, :]
    return tl.load(at, mask=(rows < count)[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def product(left, right, total, PRECISION: tl.constexpr):
    """total + left right, [M, K] x [K, N] -> [M, N]."""
    if INTERPRETED:  # the interpreter would take the bits of bfloat16 for whole numbers
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision=PRECISION)


@triton.jit
def products(
    kept, mine, others, rows, columns, M, N, D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Products of rows and columns, [M, N], and the columns' vectors, if all of D is one block: `kept` is the rows'."""
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if BLOCK_D >= D:
        block = block_of(others, columns, N, 0, D, BLOCK_D)
        total = product(kept, tl.trans(block), total, PRECISION)  # [M, D] x [D, N] -> [M, N]
    else:
        block = kept
        for start in range(0, D, BLOCK_D):
            left = block_of(mine, rows, M, start, D, BLOCK_D)
            right = block_of(others, columns, N, start, D, BLOCK_D)
            total = product(left, tl.trans(right), total, PRECISION)
    return total, block


@triton.jit
def low_words(base, index, count, RULE: tl.constexpr):
    """The low words of the ids, groups or own columns of `index`; without the rule anything."""
    words = index
    if RULE:
        words = tl.load(base + index, mask=index < count, other=-1).to(tl.int32)
    return words


@triton.jit
def highest_of(
    scores, rows, columns, row_ids, column_ids, row_groups, column_groups, own, ROWS_OWN: tl.constexpr,
    IDS: tl.constexpr, GROUPS: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """The highest score of every row; inf if, as far as low words tell, a pair is no negative."""
    if IDS:
        scores = tl.where(row_ids[:, None] == column_ids[None, :], float("inf"), scores)
    if GROUPS:
        scores = tl.where(row_groups[:, None] == column_groups[None, :], float("inf"), scores)
    if OWN and ROWS_OWN:
        scores = tl.where(own[:, None] == columns[None, :], float("inf"), scores)
    elif OWN:
        scores = tl.where(own[None, :] == rows[:, None], float("inf"), scores)
    return tl.max(scores, axis=1)


@triton.jit
def masks_of(
    scores, rows, M, columns, N, row_ids, column_ids, row_groups, column_groups, own, ROWS_OWN: tl.constexpr,
    IDS: tl.constexpr, GROUPS: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """(positive, negative), [M, N], by the rules themselves; without ids none is positive."""
    present = scores != float("-inf")  # true of NaN, which has to stay
    if OWN and ROWS_OWN:
        present = present & (tl.load(own + rows, mask=rows < M, other=-1)[:, None] != columns[None, :])
    elif OWN:
        present = present & (tl.load(own + columns, mask=columns < N, other=-1)[None, :] != rows[:, None])
    positive, negative = present, present
    if IDS:
        i_ids = tl.load(row_ids + rows, mask=rows < M, other=0)[:, None]
        j_ids = tl.load(column_ids + columns, mask=columns < N, other=0)[None, :]
        positive, negative = present & (i_ids == j_ids), present & (i_ids != j_ids)
    if GROUPS:
        i_groups = tl.load(row_groups + rows, mask=rows < M, other=0)[:, None]
        j_groups = tl.load(column_groups + columns, mask=columns < N, other=0)[None, :]
        negative = negative & (i_groups != j_groups)
    return positive, negative


@triton.jit
def columns_of_part(columns, BLOCK_N: tl.constexpr):
    """First and end of this program's part of the columns, which program_id(2) cuts up."""
    step = tl.cdiv(tl.cdiv(columns, tl.num_programs(2)), BLOCK_N) * BLOCK_N
    first = tl.program_id(2) * step
    return first, tl.minimum(first + step, columns)
