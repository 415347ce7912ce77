"""The type that sources of negatives and heads share: the candidates of a batch's queries.

B queries, C candidates, P positives, D dimensions. Masks are stored as rules on ids, not as matrices. A mask [B, C] is
as large as the matrix of scores, so a whole mask is built only where the whole matrix is.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from contrast.errors import InputError

# Of a class that is never drawn log_q is -inf, and inf - inf would be NaN: so log_q is at least this, about -87.
LOWEST_LOG_Q = math.log(torch.finfo(torch.float32).tiny)
ABSENT = torch.iinfo(torch.int64).min  # the id or group of an entry that is no candidate: padding, an unfilled row


@dataclass(frozen=True)
class Teacher:
    """Gives every query a target distribution over its candidates: softmax(cos(query, vector) / T - log_q).

    query        [B, E], the teacher's vectors of the queries, without gradient
    temperature  T
    vectors      [C, E], the teacher's vectors of the shared candidates; None: the candidates' own
    log_q        [C], subtracted from the teacher's scores of a candidate: DINO's centre, Sinkhorn-Knopp. Or None
    """

    query: Tensor
    temperature: float
    vectors: Tensor | None = None
    log_q: Tensor | None = None

    def tile(self, rows: slice, columns: slice) -> "Teacher":
        """The teacher of the queries `rows` and the candidates `columns`."""
        vectors = None if self.vectors is None else self.vectors[columns]
        return replace(
            self, query=self.query[rows], vectors=vectors, log_q=None if self.log_q is None else self.log_q[columns]
        )


@dataclass(frozen=True)
class Candidates:
    """Candidates of B queries, and the rules that say which of them are positive and which count.

    vectors          [C, D], shared by the batch, or [B, C, D], one set per query
    query_ids        [B] int64
    ids              [C] or [B, C] int64. A candidate is positive if its id equals the query's. None: none is
    self_index       [B] int64, the column of the query itself, which never counts; -1: it has no column. Or None
    excluded_groups  [C] or [B, C] int64. A candidate of the query's group does not count, unless it is positive: this
                     leaves out false negatives, other views of the query's image and accidental hits. None: all count
    query_groups     [B] int64, the groups of the queries, beside `excluded_groups`
    log_q            [C] or [B, C], log expected count under the noise distribution, at least LOWEST_LOG_Q. None: no
                     correction
    positives        [B, P, D], each query's own positives, beside the shared candidates. Or None
    positives_log_q  [B, P], as `log_q`
    classes          [C] or [B, C] int64, the row of the class table that each vector comes from, for callers that count
                     rows. No mask depends on it
    symmetric        the vectors are the queries of all ranks, in order of rank
    normalized       the vectors have length 1 already, so cosines need not divide by their lengths
    ring             vectors, ids, groups and log_q are this rank's part. Those of other ranks are passed around a ring
    teacher          gives each query a distribution over the candidates that count, which takes the place of the ids
                     as the target of the softmax loss. Or None

    A candidate whose id or group is ABSENT never counts.
    """

    vectors: Tensor
    query_ids: Tensor
    ids: Tensor | None = None
    self_index: Tensor | None = None
    excluded_groups: Tensor | None = None
    query_groups: Tensor | None = None
    log_q: Tensor | None = None
    positives: Tensor | None = None
    positives_log_q: Tensor | None = None
    classes: Tensor | None = None
    symmetric: bool = False
    normalized: bool = False
    ring: bool = False
    teacher: Teacher | None = None

    def __post_init__(self) -> None:
        for name in ("query_ids", "ids", "self_index", "excluded_groups", "query_groups", "classes"):
            value = getattr(self, name)
            if value is not None and value.dtype != torch.int64:  # ABSENT does not fit narrower types
                object.__setattr__(self, name, as_ids(name, value))
        for name in ("log_q", "positives_log_q"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, getattr(self, name).clamp(min=LOWEST_LOG_Q))

    def __len__(self) -> int:
        return self.vectors.shape[-2]

    def tile(self, rows: slice, columns: slice) -> "Candidates":
        """The candidates `columns` as the queries `rows` see them; the masks of the tile follow from it."""
        own = None
        if self.self_index is not None:
            start, stop, _ = columns.indices(len(self))
            own = self.self_index[rows] - start
            own = torch.where((own >= 0) & (own < stop - start), own, -1)
        return replace(
            self,
            vectors=self.vectors[columns] if self.vectors.ndim == 2 else self.vectors[rows, columns],
            query_ids=self.query_ids[rows],
            ids=_columns(self.ids, rows, columns),
            self_index=own,
            excluded_groups=_columns(self.excluded_groups, rows, columns),
            query_groups=None if self.query_groups is None else self.query_groups[rows],
            log_q=_columns(self.log_q, rows, columns),
            positives=None if self.positives is None else self.positives[rows],
            positives_log_q=None if self.positives_log_q is None else self.positives_log_q[rows],
            classes=_columns(self.classes, rows, columns),
            teacher=None if self.teacher is None else self.teacher.tile(rows, columns),
        )

    def masks(self) -> tuple[Tensor, Tensor]:
        """`(positive, valid)` of the shared candidates, both [B, C] bool; every positive is valid."""
        shape, device = (len(self.query_ids), len(self)), self.query_ids.device
        positive = torch.zeros(shape, dtype=torch.bool, device=device)
        valid = torch.ones((), dtype=torch.bool, device=device)
        for rule in (self.ids, self.excluded_groups):
            if rule is not None:
                valid = valid & (rule != ABSENT)  # [C] or [B, C]
        if self.self_index is not None:
            valid = valid & (
                self.self_index[:, None] != torch.arange(shape[1], device=device)
            )  # [B, 1] x [C] -> [B, C]
        if self.ids is not None:
            positive = (self.query_ids[:, None] == self.ids) & valid  # [B, 1] x [C] or [B, C] -> [B, C]
        if self.excluded_groups is not None:
            assert self.query_groups is not None
            valid = valid & (positive | (self.query_groups[:, None] != self.excluded_groups))
        return positive, valid.expand(shape)


def as_ids(name: str, values: Tensor | ArrayLike) -> Tensor:
    """`values`, a tensor, numpy array or sequence of whole numbers of any shape, as an int64 tensor of that shape.

    Narrower integers are widened, because ABSENT and -1 must fit; floats are accepted if they are whole.
    A tensor stays on its device, and an int64 tensor is returned as it is. The error message names the values `name`.

    Raises InputError for booleans, strings and other objects, and for NaN, infinite, fractional or too large numbers.
    """
    if not isinstance(values, Tensor):
        values = _tensor(name, values)
    if values.dtype == torch.int64:
        return values
    if values.dtype == torch.bool or values.is_complex():
        raise InputError(f"{name} must be whole numbers, not {values.dtype}")
    ids = values.long()
    if values.is_floating_point():
        whole = (values == values.round()) & (values.abs().float() < 2.0**63)  # both are false for NaN
        if not whole.all():
            wrong = values[~whole]
            raise InputError(f"{name} must be whole numbers, but {len(wrong)} of {values.numel()} are not: {wrong[0]}")
    elif values.dtype == torch.uint64 and ids.numel() and int(ids.min()) < 0:
        raise InputError(f"{name} must be below 2^63, but {int((ids < 0).sum())} of {ids.numel()} are not")
    return ids


def _tensor(name: str, values: ArrayLike) -> Tensor:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be an array of whole numbers: {' '.join(str(error).split())}") from error
    if array.dtype.kind not in "biuf":
        first = f", such as {array.flat[0]!r}" if array.size else ""
        raise InputError(f"{name} must be whole numbers, not {array.dtype}{first}")
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    # `newbyteorder` and the copy: torch reads neither foreign byte orders, negative strides nor read-only memory
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))


def as_rows(ids: Tensor, size: int) -> Tensor:
    """Ids of any shape that index a table of `size` rows, as int64. InputError if one is out of range.

    An id of -1 would mean the last row. On a GPU the range is not checked, because reading the ids would wait for the
    device.
    """
    if ids.dtype != torch.int64:
        ids = as_ids("ids", ids)
    if ids.device.type == "cpu" and ids.numel():
        low, high = ids.aminmax()
        if low < 0 or high >= size:
            raise InputError(f"ids must be rows 0..{size - 1}, but lie between {int(low)} and {int(high)}")
    return ids


def linked(numbers: Tensor) -> Tensor:
    """The group of each row of `numbers` [N, K] int64, [N]: rows that have the same number in a column are one group.

    So are rows that a chain of such rows connects. A group is named by the lowest number in the first column of its
    rows.
    """
    places = [column.unique(return_inverse=True)[1] for column in numbers.T]  # K x [N]
    group, before = numbers[:, 0], None
    while before is None or not torch.equal(group, before):
        before = group
        for place in places:
            group = torch.empty_like(group).scatter_reduce(0, place, group, "amin", include_self=False)[place]
    return group


def _columns(rule: Tensor | None, rows: slice, columns: slice) -> Tensor | None:
    if rule is None:
        return None
    return rule[columns] if rule.ndim == 1 else rule[rows, columns]
