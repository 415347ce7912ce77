"""Scores of a head in a form that is never held as a whole: scaled vectors, an offset, the positives by themselves.

B queries, C candidates, P answers, D dimensions, M positives.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contrast.candidates import Candidates
from contrast.losses.similarity import at_least_float32, unit
from contrast.losses.tiled.pairs import Products
from contrast.losses.tiled.ranks import Blocks
from contrast.losses.tiled.statistics import Layout, layout

WORTH = 256 * 256  # scores from which on tiles are no slower, on a CPU
WORTH_CUDA = 1024 * 1024  # those of the kernels on a GPU, and of tiles in torch there: guesses, not measured yet
WORTH_GPU = 4096 * 4096


class Tiles(NamedTuple):
    """Scores are query . vectors + offset; those of the positives are there already, margin and all."""

    query: Tensor  # [B, D]
    vectors: Tensor  # [C, D]
    offset: Tensor | None  # [C], -inf: the candidate does not count
    symmetric: bool  # the vectors are the queries, of all ranks
    layout: Layout | None  # None: the positives are too many to be listed
    blocks: Blocks | None  # of a ring; the vectors are then this rank's alone
    positive_row: Tensor  # [M] int64
    positive_scores: Tensor  # [M]


def floored(log_q: Tensor) -> Tensor:
    """The log expected counts; that of a class never drawn, -inf, becomes float32's least, since inf - inf is NaN."""
    return log_q.clamp(min=math.log(torch.finfo(torch.float32).tiny))  # about -87


def tiles(head: Any, query: Tensor, candidates: Candidates, correction: bool = True) -> Tiles | None:
    """The scores of `head` (a `contrast.heads.Head`), None where only the whole matrix will do.

    That is where every query has candidates or log_q of its own, [B, C, D] or [B, C], or where there are too many
    positives for a list and they bear a margin.
    """
    if candidates.vectors.ndim != 2 or (candidates.log_q is not None and candidates.log_q.ndim == 2):
        return None
    blocks = Blocks(candidates) if candidates.ring else None
    found = layout(candidates)
    if found is not None and blocks is not None:
        found = found._replace(negatives=blocks.negatives)
    many = found is None
    if many and (head.margin is not None or candidates.positives is not None or blocks is not None):
        return None
    with torch.autocast(query.device.type, enabled=False):
        same = candidates.vectors is query
        symmetric = candidates.symmetric and found is not None
        query, vectors = at_least_float32(query), at_least_float32(candidates.vectors)
        if head.cosine:
            query = unit(query)
            vectors = query if same else unit(vectors)
        temperature = head.temperature()
        rows, scores = [], []
        if found is not None:  # with no positives too: every rank has to send a gradient back through the gather
            row, column = found.positive_row, found.positive_column
            values = Products.apply(query, vectors, row, column)  # [M]
            if head.margin is not None:
                pairs = (query, vectors) if head.cosine else (query[row], vectors[column])  # a dot product's lengths
                values = head.with_margin(values, *pairs)
            values = values / temperature
            if correction and candidates.log_q is not None:
                values = values - floored(candidates.log_q)[column]
            rows.append(row)
            scores.append(values)
        if candidates.positives is not None:
            answers = at_least_float32(candidates.positives)
            answers = unit(answers) if head.cosine else answers  # [B, P, D]
            values = (answers @ query[:, :, None]).squeeze(2)  # [B, P, D] x [B, D, 1] -> [B, P]
            values = head.with_margin(values, query[:, None], answers) / temperature
            if correction and candidates.positives_log_q is not None:
                values = values - floored(candidates.positives_log_q)
            rows.append(torch.arange(len(query), device=query.device).repeat_interleave(values.shape[1]))
            scores.append(values.flatten())
        offset = None
        if correction and candidates.log_q is not None:
            offset = -floored(candidates.log_q).to(query.dtype)
        if found is not None and found.absent is not None:
            offset = query.new_zeros(len(vectors)) if offset is None else offset
            offset = offset.masked_fill(found.absent, -torch.inf)
        if symmetric:
            query = query / temperature.sqrt()
            vectors = query if same else vectors / temperature.sqrt()
        else:
            query = query / temperature
    return Tiles(
        query,
        vectors,
        offset,
        symmetric,
        found,
        blocks,
        torch.cat(rows) if rows else candidates.query_ids.new_empty(0),
        torch.cat(scores) if scores else query.new_empty(0),
    )
