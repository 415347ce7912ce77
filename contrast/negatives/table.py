"""The class table: one trained vector for each class; softmax regression, sampled softmax, NCE, negative sampling.

P views, B queries of a view, N classes, D dimensions, K draws.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contrast.candidates import LOWEST_LOG_Q, Candidates, as_rows
from contrast.errors import InputError
from contrast.losses.band import Band, ClassRows, Columns, Output
from contrast.negatives.source import Queries, Source
from contrast.samplers import Poisson, Sampler


class Table(Source):
    """Class vectors, whole or sampled; ids are classes.

    num_ids  N, number of classes; dim  D
    sampler  None: every class is a candidate. Otherwise one of the two exact pairings for a sampled softmax:
             a `Sampler` with `draws` K: independent draws with replacement. A draw of the query's own class stays
                 noise, and all scores, the positive's too, are corrected by log(K q)
             a `Poisson` sample: every class is in it with a probability pi, independently of all others; the query's
                 own class is left out of the noise, and all scores, the positive's too, are corrected by log pi
             A fixed number of distinct draws is biased with either correction, so it is not offered.
    draws    K, of a `Sampler`
    std      of the normal distribution that the vectors start from
    sparse   the gradient is sparse: a step allocates nothing of the table's size. The optimiser must support sparse
             gradients (SGD, Adagrad, SparseAdam). This needs a sampler: in a whole table every row has a gradient

    The draws of a step are shared by all its queries, on all ranks.
    """

    ids_are_rows = needs_labels = True

    def __init__(
        self,
        num_ids: int,
        dim: int,
        sampler: Sampler | Poisson | None = None,
        draws: int = 64,
        std: float = 0.02,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        if num_ids < 2 or dim < 1 or draws < 1:
            raise InputError(f"a table needs 2 classes, 1 dimension and 1 draw at least: {num_ids}, {dim}, {draws}")
        if sampler is not None and sampler.size != num_ids:
            raise InputError(f"a sampler of {sampler.size} ids does not fit a table of {num_ids} classes")
        if sparse and sampler is None:
            raise InputError(f"sparse gradients need a sampler: without one all {num_ids} classes are in every step")
        self.sampler, self.draws, self.sparse = sampler, draws, sparse
        self.vectors = nn.Parameter(torch.randn(num_ids, dim) * std)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        ids: Tensor,
        groups: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Queries:
        """One direction for all P views. `key` and `groups` are not used. InputError for ids that are no classes."""
        flat, ids = query.flatten(0, 1), as_rows(ids, len(self.vectors)).repeat(len(query))  # [P B, D], [P B]
        positives = self.rows(ids)[:, None]  # [P B, 1, D]
        if self.sampler is None:
            everything = torch.arange(len(self.vectors), device=ids.device)
            candidates = Candidates(
                self.vectors, ids, excluded_groups=everything, query_groups=ids, positives=positives, classes=everything
            )
            return [(flat, candidates)]
        excluded: Tensor | None = None
        if isinstance(self.sampler, Poisson):
            drawn = excluded = self.sampler.draw(generator)  # [n], n random
        else:
            drawn = self.sampler.draw((self.draws,), generator)  # [K]
        candidates = Candidates(
            vectors=self.rows(drawn),
            query_ids=ids,
            excluded_groups=excluded,
            query_groups=ids,
            log_q=self.log_count(drawn),
            positives=positives,
            positives_log_q=self.log_count(ids)[:, None],
            classes=drawn,
        )
        return [(flat, candidates)]

    def log_count(self, ids: Tensor) -> Tensor:
        """log expected count of the classes `ids` among the draws: log pi or log(K q)."""
        if isinstance(self.sampler, Poisson):
            return self.sampler.log_inclusion(ids)
        assert self.sampler is not None
        return self.sampler.log_prob(ids) + math.log(self.draws)

    def has_output(self) -> bool:
        """Whether `output` is defined: Poisson draws leave out each query's own class, so queries cannot share them."""
        return not isinstance(self.sampler, Poisson)

    def draw(self, blocks: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Draws for `blocks` blocks of queries, [blocks, K]; None if all classes are candidates."""
        return self.sampler.draw((blocks, self.draws), generator) if isinstance(self.sampler, Sampler) else None

    def output(self, band: Band, ids: Tensor, drawn: Tensor | None, corrected: bool = True) -> Output:
        """The rows that the pairs of a band are scored against, as in `forward`.

        ids        [n, G], the classes that are the band's targets
        drawn      [N, K], of `draw`, each shared by a block of consecutive queries
        corrected  whether log_q is needed
        """
        if drawn is None:
            everything = torch.arange(len(self.vectors), device=ids.device)[None]
            near, shared = Columns(ids, band.pairs, 1.0), Columns(everything, band.number[None], 0.0)
            return Output(band, near, shared, len(self.vectors) - 1, holds_targets=True)
        near_q, shared_q = (self.log_count(x) if corrected else None for x in (ids[:, :, None], drawn[:, None]))
        shared = Columns(drawn, band.number.view(len(drawn), -1, 1), 0.0, shared_q)
        return Output(band, Columns(ids, band.pairs, 1.0, near_q), shared, self.draws)

    def has_class_rows(self) -> bool:
        """Whether `class_rows` is defined: the noise has to be independent draws."""
        return isinstance(self.sampler, Sampler)

    def class_rows(self) -> ClassRows:
        """Each class has one row, its own."""
        assert isinstance(self.sampler, Sampler)
        every = torch.arange(len(self.vectors) + 1)
        log_q = self.sampler.log_prob(every[:-1].to(self.vectors.device)).double() + math.log(self.draws)
        log_q = log_q.clamp(min=LOWEST_LOG_Q)
        common = range(min(512, len(self.vectors)))  # a vocabulary begins with the most frequent words
        return ClassRows(every, every[:-1].int(), torch.ones(len(self.vectors)), log_q, common)

    def rows(self, ids: Tensor) -> Tensor:
        """Vectors of the classes `ids` [K], [K, D]."""
        return F.embedding(ids, self.vectors, sparse=True) if self.sparse else self.vectors[ids]


class Targets(Source):
    """No vectors, only the class of each query: for a head that holds the class vectors itself (adaptive softmax)."""

    ids_are_rows = needs_labels = True

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        ids: Tensor,
        groups: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Queries:
        flat = query.flatten(0, 1)
        return [(flat, Candidates(flat.new_empty(0, flat.shape[1]), ids.repeat(len(query))))]
