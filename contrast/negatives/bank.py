"""The memory bank: one row for each image of the data set (Wu et al. 2018).

P views, B images of this rank, W ranks, D dimensions, N rows, K draws.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from contrast.candidates import Candidates, as_rows
from contrast.distributed import gather, rank, world_size
from contrast.errors import InputError
from contrast.losses.similarity import similarity
from contrast.negatives.source import Queries, Source
from contrast.samplers import Sampler


class Bank(Source):
    """A unit vector for each image, moved towards the image's embedding after every step that contains the image.

    num_ids    N, number of images; ids are rows. dim  D
    sampler    draws the noise; None: the whole bank is scored, a softmax over all instances
    draws      K noise rows, with replacement, shared by all queries of a step on all ranks. They carry log_q. A draw of
               the query's own row stays among the noise, as NCE and the sampled softmax require
    proximity  draws from softmax(cosine / proximity) over the rows instead, K rows for every query: hard negatives with
               their exact log_q. This scores the whole bank, without gradient
    momentum   row <- unit(momentum row + (1 - momentum) embedding), the embedding the unit mean of the image's views
    of_keys    the embedding is that of the keys, not of the queries: a teacher's features in CRD (Tian et al. 2020)

    Every rank holds all N rows and writes all rows of a step, so that the ranks agree. The rows start as random unit
    vectors.
    """

    ids_are_rows, supports_groups = True, False

    vectors: Tensor

    def __init__(
        self,
        num_ids: int,
        dim: int,
        sampler: Sampler | None = None,
        draws: int = 4096,
        proximity: float | None = None,
        momentum: float = 0.5,
        of_keys: bool = False,
    ) -> None:
        super().__init__()
        if num_ids < 2 or dim < 1 or draws < 1 or not 0 <= momentum < 1:
            raise InputError(
                f"a bank needs at least 2 rows, 1 dimension, 1 draw and a momentum in [0, 1): {num_ids} rows, "
                f"{dim} dimensions, {draws} draws, momentum {momentum}"
            )
        if sampler is not None and sampler.size != num_ids:
            raise InputError(f"a sampler of {sampler.size} ids does not fit a bank of {num_ids} rows")
        if proximity is not None and not (proximity > 0 and sampler is None):
            raise InputError(f"proximity={proximity} must be positive, and takes the place of a sampler")
        self.sampler, self.draws, self.proximity, self.momentum = sampler, draws, proximity, momentum
        self.of_keys = of_keys
        self.register_buffer("vectors", F.normalize(torch.randn(num_ids, dim), dim=-1))

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        ids: Tensor,
        groups: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Queries:
        """One direction for all P views. `groups` are not used. InputError for ids that are no rows."""
        if self.of_keys and key is None:
            raise InputError("a bank of keys needs keys: key=teacher, or a second view")
        ids = as_rows(ids, len(self.vectors)).repeat(len(query))  # [P B]
        flat = query.flatten(0, 1)  # [P B, D]
        if self.sampler is None and self.proximity is None:
            everything = torch.arange(len(self.vectors), device=ids.device)
            return [(flat, Candidates(self.vectors, ids, ids=everything))]
        if self.sampler is not None:
            drawn = self.sampler.draw((self.draws,), generator)  # [K]
            log_q, own_log_q = self.sampler.log_prob(torch.cat([drawn, ids])).split([self.draws, len(ids)])
        else:
            drawn, log_q, own_log_q = self._near(query, ids, generator)  # [P B, K], [P B, K], [P B]
        candidates = Candidates(
            vectors=self.vectors[drawn],
            query_ids=ids,
            log_q=log_q + math.log(self.draws),
            positives=self.vectors[ids][:, None],  # [P B, 1, D]
            positives_log_q=own_log_q[:, None] + math.log(self.draws),
        )
        return [(flat, candidates)]

    @torch.no_grad()
    def _near(self, query: Tensor, ids: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """K rows for each query, [P B, K], their log probability, and that of the query's own row [P B]."""
        assert self.proximity is not None
        views, images, _ = query.shape
        scores = similarity(query.detach().flatten(0, 1), self.vectors) / self.proximity  # [P B, N]
        log_q = scores.log_softmax(dim=1)
        # every rank draws for the whole batch and takes its own part, so that two ranks draw what one process draws
        shape = (views, world_size() * images, self.draws)
        uniforms = torch.rand(shape, generator=generator, dtype=torch.float64)[:, rank() * images :][:, :images]
        steps = log_q.double().exp().cumsum(dim=1)  # [P B, N]
        at = uniforms.flatten(0, 1).to(steps.device) * steps[:, -1:]  # [P B, K]
        drawn = torch.searchsorted(steps, at, right=True).clamp(max=len(self.vectors) - 1)
        return drawn, log_q.gather(1, drawn), log_q.gather(1, ids[:, None]).squeeze(1)

    @torch.no_grad()
    def update(self, query: Tensor, key: Tensor | None, ids: Tensor, groups: Tensor | None = None) -> None:
        rows = query if key is None or not self.of_keys else key
        mean = F.normalize(rows.to(self.vectors.dtype), dim=-1).mean(dim=0)  # [P, B, D] -> [B, D]
        embedding = gather(F.normalize(mean, dim=-1))  # [W B, D]
        ids = gather(as_rows(ids, len(self.vectors)))
        # if an image is in the batch twice, every rank writes the same embedding, the first one
        order = ids.argsort(stable=True)
        embedding = embedding[order[torch.searchsorted(ids[order], ids)]]
        mixed = self.momentum * self.vectors[ids] + (1 - self.momentum) * embedding
        self.vectors[ids] = F.normalize(mixed, dim=-1)
