"""Queues of past keys: MoCo's negatives, NNCLR's support set.

P pairs of views, B images of this rank, W ranks, D dimensions, K rows of the queue.
"""

import torch
from torch import Tensor, nn

from contrast.candidates import ABSENT, Candidates, Teacher
from contrast.distributed import gather
from contrast.errors import InputError
from contrast.losses.similarity import similarity
from contrast.negatives.in_batch import Paired
from contrast.negatives.source import Queries, Source

_NO_POSITIVE = ABSENT + 1  # the id of a row that is no query's positive


class Rows(nn.Module):
    """A ring of K vectors with an id each; all of it is in the state dict. A row not filled yet has the id ABSENT.

    All ranks hold the same rows in the same order: `push_all_ranks` gathers new rows in the order of the whole batch.
    """

    vectors: Tensor
    ids: Tensor
    head: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise InputError(f"a queue needs at least 1 row and 1 dimension, got {size} and {dim}")
        self.register_buffer("vectors", torch.zeros(size, dim))
        self.register_buffer("ids", torch.full((size,), ABSENT))
        self.register_buffer("head", torch.zeros((), dtype=torch.long))  # the row that is written next

    @torch.no_grad()
    def push(self, vectors: Tensor, ids: Tensor) -> None:
        """Write vectors [N, D] with ids [N] over the oldest rows; of more than K only the last K remain."""
        size = len(self.ids)
        vectors, ids = vectors[-size:], ids[-size:]
        at = (self.head + torch.arange(len(ids), device=self.ids.device)) % size  # wraps around
        self.vectors[at] = vectors.to(self.vectors.dtype)
        self.ids[at] = ids
        self.head.copy_((self.head + len(ids)) % size)

    def push_all_ranks(self, key: Tensor, ids: Tensor) -> None:
        """Write the keys [P, B, D] of every rank, pair after pair in the order of the whole batch."""
        ids = gather(ids)
        for each in key:
            self.push(gather(each), ids)


class Queue(Source):
    """A query's own key is its positive, and the rows of the queue are its negatives (He et al. 2020, algorithm 1).

    size       K. Batches of any size are accepted: writes wrap around, and only the last K keys of a larger batch are
               kept
    dim        D
    in_batch   the other keys of the batch are negatives too
    positives  rows with the query's id are positives (with labels as ids: MoCo with SupCon). False: they are older
               views of the query's image, or of its group, and are left out

    teacher_temperature  the key gives the target: softmax(cos(key, candidate) / T) over the candidates, in place of one
                         positive (ReSSL, Zheng et al. 2021; SEED, Fang et al. 2021). None: the own key is the positive
    own_key              with a teacher: the query's own key is a candidate, too, as in SEED. False: ReSSL

    The queue starts empty, and rows that are not filled yet do not count. Until the first keys arrive, only `in_batch`
    provides negatives, and a query without negatives has the loss 0. Keys enter the queue after the optimiser's step,
    in the order of the whole batch.
    """

    def __init__(
        self,
        size: int,
        dim: int,
        in_batch: bool = False,
        positives: bool = False,
        teacher_temperature: float | None = None,
        own_key: bool = True,
    ) -> None:
        super().__init__()
        if teacher_temperature is None and not own_key:
            raise InputError("own_key=false needs a teacher_temperature: without it the own key is the positive")
        if teacher_temperature is not None and (in_batch or positives or teacher_temperature <= 0):
            raise InputError(
                f"teacher_temperature={teacher_temperature} must be positive, without in_batch and without positives"
            )
        self.rows = Rows(size, dim)
        self.in_batch, self.positives = in_batch, positives
        self.teacher_temperature, self.own_key = teacher_temperature, own_key

    def reset(self) -> None:
        """Empty the queue."""
        self.rows.vectors.zero_()
        self.rows.ids.fill_(ABSENT)
        self.rows.head.zero_()

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        ids: Tensor,
        groups: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Queries:
        """A direction for each of the P pairs."""
        if key is None:
            raise InputError("a queue needs keys: a key encoder (key=momentum) or a second view")
        if self.positives and groups is not None:
            raise InputError("positives=True does not go with same_label=ignored: rows hold groups then, no ids")
        query_groups = ids if groups is None else groups
        # `update` writes into these buffers, but only after the backward pass
        vectors, row_groups = self.rows.vectors, self.rows.ids
        temperature, directions = self.teacher_temperature, []
        for q, k in zip(query, key, strict=True):
            if self.in_batch:
                shared = torch.cat([gather(k).to(vectors.dtype), vectors])  # [W B + K, D]
                batch_ids = gather(ids)
                row_ids = row_groups if self.positives else torch.where(row_groups == ABSENT, ABSENT, _NO_POSITIVE)
                candidates = Candidates(
                    shared,
                    ids,
                    ids=torch.cat([batch_ids, row_ids]),
                    excluded_groups=torch.cat([gather(query_groups), row_groups]),
                    query_groups=query_groups,
                )
            else:
                candidates = Candidates(
                    vectors,
                    ids,
                    ids=row_groups if self.positives else None,
                    excluded_groups=row_groups,
                    query_groups=query_groups,
                    positives=k[:, None] if self.own_key else None,  # [B, 1, D]
                    teacher=None if temperature is None else Teacher(k.detach(), temperature),
                )
            directions.append((q, candidates))
        return directions

    def update(self, query: Tensor, key: Tensor | None, ids: Tensor, groups: Tensor | None = None) -> None:
        assert key is not None
        self.rows.push_all_ranks(key, ids if groups is None else groups)


class Nearest(Source):
    """NNCLR: the key's nearest neighbour in a queue replaces it (Dwibedi et al. 2021, eqs. 2 and 3).

    size  rows of the support set; dim  D

    The neighbours are the queries and the batch's queries are their candidates, as in the paper's algorithm 1. While
    the queue is empty a key is its own neighbour. Keys enter the queue after the optimiser's step.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.rows = Rows(size, dim)
        self.paired = Paired()

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        ids: Tensor,
        groups: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Queries:
        """A direction for each of the P pairs."""
        if key is None:
            raise InputError("nearest neighbours need keys: a key encoder or a second view")
        return self.paired(torch.stack([self.nearest(k) for k in key]), query, ids, groups)

    @torch.no_grad()
    def nearest(self, key: Tensor) -> Tensor:
        """The most similar row for each of `key` [B, D] -> [B, D]; the key itself while no row is filled."""
        key = key.detach()
        filled = self.rows.ids != ABSENT  # [K]
        cosines = similarity(key, self.rows.vectors)  # [B, D] x [K, D] -> [B, K]
        best = cosines.masked_fill(~filled, -torch.inf).argmax(dim=1)  # [B]
        return torch.where(filled.any(), self.rows.vectors[best].to(key.dtype), key)

    def update(self, query: Tensor, key: Tensor | None, ids: Tensor, groups: Tensor | None = None) -> None:
        assert key is not None
        self.rows.push_all_ranks(key, ids)
