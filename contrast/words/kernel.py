"""The loop over centre words, compiled by numba: `pip install 'contrast-learning[words]'`.

T positions of a text, V words, M draws of a block, D dimensions. A column is a row of the output layer that a query is
compared with: its targets or the nodes of their paths, then noise. All arrays are NumPy's.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
from llvmlite import binding
from numba import njit

FAST = {"reassoc", "contract", "nsz", "arcp"}  # sums may be reordered, as vector instructions need; inf and NaN stay


class Words(NamedTuple):
    """The words of a chunk, as in `Passages`: ids [T] int64, line [T] int32, reach [T] int32, at most `window`."""

    ids: np.ndarray
    line: np.ndarray
    reach: np.ndarray
    window: int


class RowLists(NamedTuple):
    """The rows row[start[w]:start[w + 1]] of each word w, at most `most`; start [V + 1] int64, row [m] int32."""

    start: np.ndarray
    row: np.ndarray
    most: int


class Noise(NamedTuple):
    """drawn [blocks, M] int64, of consecutive `size` centre words each; the first block begins at position `first`."""

    drawn: np.ndarray
    size: int
    first: int


class Copied(NamedTuple):
    """Rows first .. stop - 1 of the output layer, which steps change most often: each worker trains copies of them.

    Otherwise a worker would wait at every step for the other processors to hand these rows over.
    curvature: `contrast.words.compiled.CURVATURE`
    """

    first: int
    stop: int
    workers: int
    curvature: float


class Scores(NamedTuple):
    """A score is scale * dot + shift - log_q of the row. A softmax, or a logistic loss in which a draw has a weight."""

    softmax: bool
    scale: float
    shift: float
    noise_weight: float


OPTIONS = {"fastmath": FAST, "nogil": True, "error_model": "numpy"}
compiled = njit(**OPTIONS)
inlined = njit(inline="always", **OPTIONS)


@compiled
def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


@compiled
def logistic(scores: np.ndarray, positive: np.ndarray, weight: np.ndarray, count: int, with_loss: bool) -> float:
    """Turns scores of `count` columns into slopes of the logistic losses, weight sigmoid(s) - positive.

    weight, positive  [count], how many pairs have the column, and how many of them have it as a positive
    Returns the sum of the losses, 0 unless `with_loss`.
    """
    loss, one = 0.0, scores.dtype.type(1)
    for c in range(count):
        s = scores[c]
        if with_loss:
            loss += weight[c] * softplus(s) - positive[c] * s
        scores[c] = weight[c] / (one + math.exp(-s)) - positive[c]
    return loss


@compiled
def softmax(scores: np.ndarray, targets: int, count: int, with_loss: bool) -> float:
    """As `logistic`, for one softmax for each of the first `targets` columns, among itself and all draws.

    With Z the sum over the draws, the slope of a target is -(1 - p) = -sigmoid(log Z - s), and a draw takes its share
    e^s / Z of all 1 - p.
    """
    one, loss = scores.dtype.type(1), 0.0
    highest, z, rest = scores[targets], scores.dtype.type(0), scores.dtype.type(0)
    for c in range(targets, count):
        highest = max(highest, scores[c])
    for c in range(targets, count):
        scores[c] = math.exp(scores[c] - highest)
        z += scores[c]
    log_z = highest + math.log(z)
    for c in range(targets):
        if with_loss:
            loss += softplus(log_z - scores[c])
        scores[c] = -one / (one + math.exp(scores[c] - log_z))
        rest -= scores[c]
    for c in range(targets, count):
        scores[c] *= rest / z
    return loss


@compiled
def merged_share(steps: float, workers: int) -> float:
    """The share of its change that each worker adds to a row, whose copy has come nearer to its optimum by exp(-steps).

    With the sum of all changes the row would overshoot, where the workers one after another would come nearer by
    exp(-workers * steps).
    """
    return 1.0 if steps == 0 else math.expm1(-workers * steps) / (workers * math.expm1(-steps))


@inlined
def add(total: np.ndarray, factor: float, table: np.ndarray, row: int, dim: int) -> None:
    for d in range(dim):
        total[d] += factor * table[row, d]


@inlined
def add_to_row(table: np.ndarray, row: int, factor: float, vector: np.ndarray, dim: int) -> None:
    for d in range(dim):
        table[row, d] += factor * vector[d]


@inlined
def exchange(vector: np.ndarray, gradient: np.ndarray, table: np.ndarray, row: int, factor: float, dim: int) -> None:
    """`add` of the row to the gradient, and `add_to_row` of the vector to the row, in one pass."""
    for d in range(dim):
        gradient[d] += factor * table[row, d]
        table[row, d] += factor * vector[d]


@inlined
def dot(vector: np.ndarray, table: np.ndarray, row: int, dim: int, zero: float) -> float:
    total = zero
    for d in range(dim):
        total += vector[d] * table[row, d]
    return total


def kept(function: Callable[..., tuple[float, int]], name: str) -> Callable[..., tuple[float, int]]:
    """Compiles the function; numba keeps the code for later processes if it finds a folder that it can write.

    numba names its files by the function, and writes an index and the code one after the other, without a lock. So the
    name contains a hash of all that the code depends on: two processes that write at the same time write the same.
    """
    try:
        machine = (numba.__version__, binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten())
        digest = blake2b(repr(machine).encode() + Path(__file__).read_bytes(), digest_size=8).hexdigest()
        function.__qualname__ = f"{name}_{digest}"
        return njit(cache=True, **OPTIONS)(function)
    except (RuntimeError, OSError):  # no such folder, an unknown processor, or a module in a zip file
        return njit(**OPTIONS)(function)


@lru_cache(maxsize=8)
def kernel(dim: int, dtype: np.dtype, keeps: bool = True) -> Callable[..., tuple[float, int]]:
    """The loop for vectors of so many numbers of a type; that they are known makes it a quarter faster.

    keeps  False: compiles it anew, whatever numba has kept
    """
    real, zero = dtype.type, dtype.type(0)

    def train(
        start: int,
        stop: int,
        words: Words,
        cbow: bool,
        inputs: np.ndarray,
        input_rows: RowLists,
        outputs: np.ndarray,
        output_rows: RowLists,
        positive: np.ndarray,
        log_q: np.ndarray,
        copied: Copied,
        noise: Noise,
        head: Scores,
        lr: float,
        with_loss: bool,
    ) -> tuple[float, int]:
        """One step for each centre word at the positions start..stop - 1; see `contrast.words.compiled`.

        Returns the sum of the losses of the pairs, 0 unless `with_loss`, and their number.
        """
        draws = noise.drawn.shape[1]
        centre, context = np.empty(1, np.int64), np.empty(2 * words.window, np.int64)
        vector, gradient = np.empty(dim, dtype), np.empty(dim, dtype)
        row = np.empty(output_rows.most * 2 * words.window + draws, np.int64)
        label, weight, scores = np.empty((3, len(row)), dtype)
        originals = outputs[copied.first : copied.stop]
        copies, before, squares = originals.copy(), originals.copy(), np.zeros(len(originals))
        merged = output_rows.most > 1  # paths of words share nodes; each is one column
        column = np.empty(len(outputs) if merged else 0, np.uint32)
        total, pairs = 0.0, 0
        for i in range(start, stop):
            near = 0
            for t in range(i - words.reach[i], i + words.reach[i] + 1):
                if t != i and words.line[t] == words.line[i]:
                    context[near] = words.ids[t]
                    near += 1
            if near == 0:
                continue
            centre[0] = words.ids[i]
            read, targets = (context[:near], centre) if cbow else (centre, context[:near])
            vector[:] = 0
            for word in read:
                first, last = input_rows.start[word], input_rows.start[word + 1]
                part = real(1 / (len(read) * (last - first)))
                for n in range(first, last):
                    add(vector, part, inputs, input_rows.row[n], dim)

            columns = 0
            for word in targets:
                for n in range(output_rows.start[word], output_rows.start[word + 1]):
                    c = column[output_rows.row[n]] if merged else columns
                    if c >= columns or row[c] != output_rows.row[n]:
                        c = columns
                        columns += 1
                        row[c], label[c], weight[c] = output_rows.row[n], 0, 0
                        if merged:
                            column[row[c]] = c
                    label[c] += positive[n]
                    weight[c] += 1
            own = columns
            for n in range(draws):
                row[columns], label[columns] = noise.drawn[(i - noise.first) // noise.size, n], 0
                weight[columns] = head.noise_weight * len(targets)
                columns += 1
            for c in range(columns):
                r = row[c]
                # one inner loop for both tables: with one in each of two branches, a step took 1.4 to 1.7 times as long
                is_copied = copied.first <= r < copied.stop
                table, place = (copies, r - copied.first) if is_copied else (outputs, r)
                scores[c] = head.scale * dot(vector, table, place, dim, zero) + head.shift - log_q[r]
            if head.softmax:
                total += softmax(scores, own, columns, with_loss)
            else:
                total += logistic(scores, label, weight, columns, with_loss)

            gradient[:], square = 0, zero
            for d in range(dim):
                square += vector[d] ** 2
            for c in range(columns):
                r, step = row[c], -lr * head.scale * scores[c]
                is_copied = copied.first <= r < copied.stop
                table, place = (copies, r - copied.first) if is_copied else (outputs, r)
                exchange(vector, gradient, table, place, step, dim)
                if is_copied:
                    squares[place] += weight[c] * square
            part = real(1 / len(read))
            for word in read:
                for n in range(input_rows.start[word], input_rows.start[word + 1]):
                    add_to_row(inputs, input_rows.row[n], part, gradient, dim)
            pairs += len(targets)
        for r in range(len(copies)):
            share = real(merged_share(lr * head.scale**2 * copied.curvature * squares[r], copied.workers))
            for d in range(dim):
                originals[r, d] += share * (copies[r, d] - before[r, d])
        return total, pairs

    return kept(train, f"train_{dim}_{dtype}") if keeps else njit(**OPTIONS)(train)
