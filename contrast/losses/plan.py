"""How the scores of a loss are computed: as one matrix, in tiles, by Triton kernels or around a ring of ranks.

`plan` is the only place that decides. It also lists the few pairs of a query and a candidate that are no plain
negatives, because tiles leave those out of the product.

B queries, C candidates, M pairs.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from contrast.candidates import ABSENT, Candidates
from contrast.losses.tiled.triton import can_run

MIN_SCORES_CPU = 64 * 64  # from this many scores on, lists and tiles are no slower than the matrix with its masks
# Up to so many scores one matrix is faster than tiles, where nothing but the loss is needed (benchmarks/losses.py):
MAX_SCORES_CROSS_ENTROPY = 160 * 160
MAX_SCORES_LABELS = 2048 * 2048  # where candidates with a query's label are positives
MAX_SCORES_SIGMOID = 192 * 192
MIN_SCORES_MASKED = 256 * 256  # as MIN_SCORES_CPU, for tiles that make their masks
MIN_SCORES_BLOCKS = 2**22  # the same for blocks of rows: 16 MiB in float32
MIN_SCORES_TRITON = 1024 * 1024  # a guess: no GPU has been measured yet
MIN_SCORES_TORCH_GPU = 4096 * 4096  # likewise
TRITON_DEVICES = ("cuda",)
TILE_ROWS, TILE_COLUMNS = 768, 768  # on a CPU: 2.3 MiB in float32, and two or three such tiles fit into the caches
MAX_PAIRS_PER_ROW = 32  # of a list, for each query and each candidate: about 100 bytes a pair
MIN_PAIRS_PER_ROW = 4  # up to so many are always listed
SCORES_PER_PAIR = 64  # beyond these, one pair for so many scores: a listed pair costs as much as the masks of 64 scores


class Scoring(NamedTuple):
    """How similarities become scores: margin(similarity) / temperature - log_q. The margin is for positives alone.

    temperature  scalar tensor
    cosine       cosine similarity; False: dot product
    margin       a module from `contrast.heads.margin`, or None
    correction   whether log_q is subtracted, where candidates carry it
    tiled        True: never as a matrix; False: always as a matrix; None: whichever is faster
    """

    temperature: Tensor
    cosine: bool = True
    margin: nn.Module | None = None
    correction: bool = True
    tiled: bool | None = None


class Pairs(NamedTuple):
    """Pairs of a query and a candidate, int64 [M] each."""

    row: Tensor
    column: Tensor


class Tiles:
    """Tiles of [rows, columns] over [B, C], row after row of tiles.

    excluded       pairs that are left out, or None
    rows, columns  of a tile; None: TILE_ROWS, TILE_COLUMNS
    parts          for every tile its slices of rows and columns, and the positions in the flattened tile of the pairs
                   that are left out, or None
    single         whether there is only one tile
    """

    def __init__(
        self,
        queries: int,
        candidates: int,
        excluded: Pairs | None,
        rows: int | None = None,
        columns: int | None = None,
    ) -> None:
        self.queries, self.candidates = queries, candidates
        self.rows = max(1, min(rows or TILE_ROWS, queries))
        self.columns = max(1, min(columns or TILE_COLUMNS, candidates))
        self.single = self.rows == queries and self.columns == candidates
        down = [slice(i, min(i + self.rows, queries)) for i in range(0, queries, self.rows)]
        across = [slice(j, min(j + self.columns, candidates)) for j in range(0, candidates, self.columns)]
        left_out: list[Tensor | None] = [None] * (len(down) * len(across))
        if excluded is not None and len(excluded.row):
            row, column = excluded
            tile = (row // self.rows) * len(across) + column // self.columns
            width = (candidates - column // self.columns * self.columns).clamp(max=self.columns)  # of its tile
            position = (row % self.rows * width + column % self.columns)[tile.argsort()]
            left_out = [
                part if len(part) else None for part in position.split(tile.bincount(minlength=len(left_out)).tolist())
            ]
        grid = ((i, j) for i in down for j in across)
        self.parts = [(i, j, part) for (i, j), part in zip(grid, left_out, strict=True)]


# (query, vectors, cosine, scale, bias, logistic) -> the fields of `contrast.losses.tiled.cpu.Sums`, over the candidates
# of one rank after another (`contrast.losses.tiled.ranks.ring_sums`)
RingSums = Callable[[Tensor, Tensor, bool, Tensor, Tensor | None, bool], tuple[Tensor, None, Tensor, None]]


class PairLists(NamedTuple):
    """The candidates' rules as lists of pairs."""

    positive: Pairs  # among the shared candidates, in order of their rows
    tiles: Tiles  # of the negatives
    absent: Tensor | None  # [C] bool, candidates that never count; None: there are none
    num_positives: Tensor  # [B] int64
    num_negatives: Tensor  # [B] int64
    one_positive: bool  # every query has exactly one listed positive
    ring: RingSums | None = None  # with `candidates.ring`: the sums over the tiles of all ranks


class Plan(NamedTuple):
    """How to compute the scores.

    matrix  the whole matrix, under autograd
    lists   tiles in torch; the pairs that are no plain negatives are listed. With `candidates.ring`, the candidates are
            passed around the ranks
    masks   tiles in torch, each with its own masks, where there are too many positives for a list
    blocks  blocks of rows under autograd, computed again in the backward pass: for any loss of a row of scores
    triton  fused kernels on a GPU
    """

    method: Literal["matrix", "lists", "masks", "blocks", "triton"]
    lists: PairLists | None = None


def plan(
    query: Tensor, candidates: Candidates, scoring: Scoring, lists: bool = True, masks: bool = True, triton: bool = True
) -> Plan:
    """Decides how the scores of `query` [B, D] are computed.

    All ranks choose the same method where it communicates: around a ring, and for symmetric candidates of several
    ranks. Elsewhere their choices may differ, so no other method may communicate.

    lists, masks, triton  whether the loss can be computed by these methods
    """
    vectors, ring = candidates.vectors, candidates.ring
    count = len(query) * vectors.shape[-2]
    if (scoring.tiled is False and not ring) or torch.compiler.is_compiling():
        return Plan("matrix")
    if triton and not ring and query.device.type in TRITON_DEVICES:
        large = scoring.tiled or count >= MIN_SCORES_TRITON
        if large and can_run(query, candidates, scoring.margin is not None):
            return Plan("triton")
    tiled = scoring.tiled or ring
    if tiled or count >= (MIN_SCORES_CPU if query.device.type == "cpu" else MIN_SCORES_TORCH_GPU):
        shared = vectors.ndim == 2 and (candidates.log_q is None or candidates.log_q.ndim == 1)
        shared = shared and not (ring and candidates.log_q is not None)
        if lists and shared and (listed := pair_lists(candidates)) is not None:
            return Plan("lists", listed)
        if masks and shared and scoring.margin is None and not ring and (tiled or count >= MIN_SCORES_MASKED):
            return Plan("masks")
    return Plan("blocks" if tiled or count >= MIN_SCORES_BLOCKS else "matrix")


def pair_lists(candidates: Candidates) -> PairLists | None:
    """Lists of the pairs that are no plain negatives.

    None where they are too many, or where every query has candidates or rules of its own, [B, C, D] or [B, C].
    Around a ring only the pairs of this rank are listed here, however many they are, so that all ranks agree.
    """
    rules = [rule for rule in (candidates.ids, candidates.excluded_groups) if rule is not None]
    if candidates.vectors.ndim != 2 or any(rule.ndim == 2 for rule in rules):
        return None
    queries, count = len(candidates.query_ids), len(candidates.vectors)
    alike = candidates.symmetric and not candidates.ring  # ranks have to decide alike: by the pairs of all of them
    if alike and any(num_equal_pairs(rule) > max_pairs(count, count) for rule in rules):
        return None
    most = queries * count if candidates.symmetric or candidates.ring else max_pairs(queries, count)
    positive = positive_pairs(candidates, most)
    excluded = None if positive is None else excluded_pairs(candidates, positive, most)
    if positive is None or excluded is None:
        return None
    present = is_present(candidates)
    num_positives = torch.bincount(positive.row, minlength=queries)
    num_negatives = present.sum() - torch.bincount(excluded.row, minlength=queries)
    return PairLists(
        positive,
        Tiles(queries, count, excluded),
        None if bool(present.all()) else ~present,
        num_positives,
        num_negatives,
        len(positive.row) == queries and bool((num_positives == 1).all()),
    )


def max_pairs(queries: int, candidates: int) -> int:
    """How many pairs a list may have."""
    rows = queries + candidates
    return min(MAX_PAIRS_PER_ROW * rows, max(MIN_PAIRS_PER_ROW * rows, queries * candidates // SCORES_PER_PAIR))


def positive_pairs(candidates: Candidates, most: int) -> Pairs | None:
    """The positives among the shared candidates, in order of their rows. None if there are more than `most`."""
    if candidates.ids is None:
        return Pairs(*candidates.query_ids.new_empty(2, 0))
    equal = _equal_pairs(candidates.query_ids, candidates.ids, most)
    if equal is None:
        return None
    keep = is_present(candidates)[equal.column]
    if candidates.self_index is not None:
        keep &= candidates.self_index[equal.row] != equal.column
    return Pairs(equal.row[keep], equal.column[keep])


def excluded_pairs(candidates: Candidates, positive: Pairs, most: int) -> Pairs | None:
    """Pairs of present candidates that are no negatives: positives, queries themselves, equal groups; each once.

    None if there are more than `most`.
    """
    parts = [positive]
    if candidates.self_index is not None:
        among = candidates.self_index >= 0
        rows = torch.arange(len(candidates.self_index), device=candidates.self_index.device)
        parts.append(Pairs(rows[among], candidates.self_index[among]))
    if candidates.excluded_groups is not None:
        assert candidates.query_groups is not None
        same = _equal_pairs(candidates.query_groups, candidates.excluded_groups, most)
        if same is None:
            return None
        parts.append(same)
    count = candidates.vectors.shape[0]
    row, column = (torch.cat(each) for each in zip(*parts, strict=True))
    keep = is_present(candidates)[column]
    number = torch.unique(row[keep] * count + column[keep])
    return Pairs(number // count, number % count)


def is_present(candidates: Candidates) -> Tensor:
    """Candidates that may count at all, [C] bool: neither their id nor their group is ABSENT."""
    present = torch.ones(candidates.vectors.shape[0], dtype=torch.bool, device=candidates.query_ids.device)
    for rule in (candidates.ids, candidates.excluded_groups):
        if rule is not None:
            present = present & (rule != ABSENT)
    return present


def num_equal_pairs(ids: Tensor) -> int:
    """How many pairs of equal ids there are among `ids`, each with itself included."""
    _, count = ids.unique(return_counts=True)
    return int(count.square().sum())


def _equal_pairs(query_ids: Tensor, ids: Tensor, most: int) -> Pairs | None:
    """All pairs of equal ids, [B] and [C], by sorting. None if there are more than `most`."""
    order = ids.argsort(stable=True)
    ordered = ids[order]
    first = torch.searchsorted(ordered, query_ids)  # [B]
    count = torch.searchsorted(ordered, query_ids, right=True) - first
    total = int(count.sum())
    if total > most:
        return None
    row = torch.repeat_interleave(count, output_size=total)
    within = torch.arange(total, device=ids.device) - (count.cumsum(0) - count)[row]
    return Pairs(row, order[first[row] + within])
