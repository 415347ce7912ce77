"""Steps of skip-gram and CBOW on the logistic loss with shared noise words, their gradients in closed form.

N blocks, L centre words of a block, C words around, M noise words of a block, D dimensions, V words. The losses are
those of `contrast.heads.NCE` on the same noise words, gradient for gradient. Only the rows that a step touches are read
and written.

A pair of a query q and a target word y has the slope sigmoid(s) - 1 with s = q . y. Each of the M noise words weighs
k / M, so that the expected loss is that of k noise words for each pair (Mikolov et al. 2013, eq. 4). Gradients are
summed over the pairs, as word2vec's one after another, so the learning rate means the same.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from contrast.heads import NCE, FixedBias
from contrast.heads.scalars import Fixed
from contrast.losses.similarity import LOWEST_LOG_Q
from contrast.negatives import Table
from contrast.samplers import Sampler
from contrast.words.blocks import Blocks
from contrast.words.descent import Descent


class Noise(NamedTuple):
    """The noise words of a step.

    sampled  [N, M] int64, which all pairs of a block share
    weight   k / M, of each of them
    offset   [V], added to the score of each word; None: 0
    """

    sampled: Tensor
    weight: float
    offset: Tensor | None = None

    def part(self, start: int, stop: int) -> "Noise":
        return self._replace(sampled=self.sampled[start:stop])


def is_supported(head: nn.Module, negatives: nn.Module) -> bool:
    """Whether the gradients of this head and source are known in closed form."""
    return (
        type(head) is NCE
        and not head.cosine
        and head.margin is None
        and type(head.temperature) is Fixed
        and float(head.temperature()) == 1
        and type(head.bias) is FixedBias
        and type(negatives) is Table
        and isinstance(negatives.sampler, Sampler)
    )


def noise_words(head: nn.Module, table: nn.Module, blocks: int, generator: torch.Generator) -> Noise:
    """Noise words for so many blocks. A score's offset is bias - log(k q) in NCE, the bias in negative sampling."""
    assert isinstance(head, NCE)
    assert isinstance(table, Table)
    assert isinstance(table.sampler, Sampler)
    sampled = table.sampler.draw((blocks, table.draws), generator)
    weight = (head.num_noise or table.draws) / table.draws
    if head.correction:
        words = torch.arange(len(table.vectors), device=sampled.device)
        log_q = (table.sampler.log_prob(words) + math.log(table.draws)).clamp(min=LOWEST_LOG_Q)  # as in the head
        return Noise(sampled, weight, head.bias() - log_q - math.log(weight))
    return Noise(sampled, weight, head.bias().expand(len(table.vectors)) if head.bias() != 0 else None)


@torch.no_grad()
def step(method: str, inputs: Tensor, outputs: Tensor, blocks: Blocks, noise: Noise, descent: Descent) -> None:
    """One step of `skip_gram` or `cbow`."""
    (skip_gram if method == "skipgram" else cbow)(inputs, outputs, blocks, noise, descent)


def skip_gram(inputs: Tensor, outputs: Tensor, blocks: Blocks, noise: Noise, descent: Descent) -> None:
    """One step on the pairs: a centre word's input vector is the query, a context word the target.

    inputs, outputs  [V, D], the tables of input and output vectors, which are updated
    """
    pairs = blocks.pairs().to(inputs.dtype)  # [N, L, C]
    number = pairs.sum(dim=2, keepdim=True)  # [N, L, 1]
    query, target = rows(inputs, blocks.centre), rows(outputs, blocks.around)  # [N, L, D], [N, C, D]
    scores = torch.bmm(query, target.mT)  # [N, L, D] x [N, D, C] -> [N, L, C]
    if noise.offset is not None:
        scores += noise.offset[blocks.around][:, None]
    slopes = scores.neg_().sigmoid_().mul_(pairs)  # minus the slopes of the loss
    to_query = torch.bmm(slopes, target)  # [N, L, D]
    to_noise, noise_pairs = against_noise(outputs, query, to_query, number, noise)
    descent.update(
        outputs,
        [(blocks.around, torch.bmm(slopes.mT, query)), (noise.sampled, to_noise)],
        [(blocks.around, pairs.sum(dim=1)), (noise.sampled, noise_pairs)],
    )
    descent.update(inputs, [(blocks.centre, to_query)], [(blocks.centre, number)])


def cbow(inputs: Tensor, outputs: Tensor, blocks: Blocks, noise: Noise, descent: Descent) -> None:
    """One step on the centre words: the mean of the context's input vectors is the query, the centre word the target.

    Arguments as in `skip_gram`.
    """
    weights = blocks.pairs().to(inputs.dtype)  # [N, L, C]
    number = weights.sum(dim=2, keepdim=True)  # [N, L, 1], words of a context
    counted = (number > 0).to(inputs.dtype)  # [N, L, 1]
    weights /= number.clamp_(min=1)
    query = torch.bmm(weights, rows(inputs, blocks.around))  # [N, L, C] x [N, C, D] -> [N, L, D]
    target = rows(outputs, blocks.centre)  # [N, L, D]
    scores = (query * target).sum(dim=2, keepdim=True)  # [N, L, 1]
    if noise.offset is not None:
        scores += noise.offset[blocks.centre][:, :, None]
    slopes = scores.neg_().sigmoid_().mul_(counted)
    to_query = slopes * target  # [N, L, D]
    to_noise, noise_pairs = against_noise(outputs, query, to_query, counted, noise)
    descent.update(
        outputs,
        [(blocks.centre, slopes * query), (noise.sampled, to_noise)],
        [(blocks.centre, counted), (noise.sampled, noise_pairs)],
    )
    to_context = torch.bmm(weights.mT, to_query)  # [N, C, L] x [N, L, D] -> [N, C, D]
    descent.update(inputs, [(blocks.around, to_context)], [(blocks.around, weights.sum(dim=1))])


def against_noise(
    outputs: Tensor, query: Tensor, to_query: Tensor, number: Tensor, noise: Noise
) -> tuple[Tensor, Tensor]:
    """Adds the noise's part to the queries' steps `to_query` [N, L, D].

    number  [N, L, 1], the targets of each query [N, L, D]

    Returns the noise words' steps [N, M, D] and how many pairs each of them belongs to, [N, M].
    """
    vectors = rows(outputs, noise.sampled)  # [N, M, D]
    scores = torch.bmm(query, vectors.mT)  # [N, L, D] x [N, D, M] -> [N, L, M]
    if noise.offset is not None:
        scores += noise.offset[noise.sampled][:, None]
    slopes = scores.sigmoid_().mul_(number * -noise.weight)
    to_query.baddbmm_(slopes, vectors)
    pairs = number.sum(dim=1).mul_(noise.weight).expand(noise.sampled.shape)  # [N, 1] -> [N, M]
    return torch.bmm(slopes.mT, query), pairs


def rows(table: Tensor, ids: Tensor) -> Tensor:
    """[V, D] and [N, L] -> [N, L, D]"""
    return table.index_select(0, ids.reshape(-1)).view(*ids.shape, -1)
