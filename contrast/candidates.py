"""The one shared type: who may answer the queries of a batch.

B queries, C candidates, P positives, D dimensions. Masks are rules on ids, not matrices: a mask [B, C] grows as the
scores do, so no path but that of the whole matrix holds one.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from contrast.ids import as_ids

ABSENT = torch.iinfo(torch.int64).min  # the id or group of what is no candidate: padding, a row not filled yet


@dataclass(frozen=True)
class Teacher:
    """What gives every query a target distribution over its candidates: softmax(cos(query, vector) / T - log_q).

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
    self_index       [B] int64, the column that is the query itself, which never counts; -1: not among them. Or None
    excluded_groups  [C] or [B, C] int64. A candidate of the query's group does not count, unless it is positive: this
                     leaves out false negatives, other views of the query's image and accidental hits. None: all count
    query_groups     [B] int64, the groups of the queries, beside `excluded_groups`
    log_q            [C] or [B, C], log expected count under the noise distribution. None: no correction
    positives        [B, P, D], each query's own positives, beside the shared candidates. Or None
    positives_log_q  [B, P], as `log_q`
    classes          [C] or [B, C] int64, the row of a class table that each vector is, for callers that count rows. No
                     rule reads it
    symmetric        the vectors are the queries of all ranks, in order of rank
    normalized       the vectors have length 1 already, so cosines need not divide by their lengths
    ring             vectors, ids, groups and log_q are this rank's part. The others' parts are passed around a ring
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


def _columns(rule: Tensor | None, rows: slice, columns: slice) -> Tensor | None:
    if rule is None:
        return None
    return rule[columns] if rule.ndim == 1 else rule[rows, columns]
