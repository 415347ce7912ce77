"""Steps of skip-gram and CBOW on the logistic loss with shared noise, gradients written out, rows updated in place.

N blocks, L centres of a block, C places around, M draws of a block, D dimensions, V words. The losses are those of
`contrast.heads.NCE` on the same draws, gradient for gradient; only the rows that a step touches are read and written.

A pair of a query q and a word y has the slope sigmoid(s) - 1 with s = q . y, and weighs each of the M draws by k / M:
the noise expects as much as k draws of its own would give (Mikolov et al. 2013, eq. 4). Gradients are summed over the
pairs, as word2vec sums them one after the other, so the learning rate means the same.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from contrast.words.blocks import Blocks


class Rule(NamedTuple):
    """How a step is taken.

    noise   k, noise words a pair
    offset  [V] float32, added to the score of a word: bias - log(k q) in NCE; None: 0
    limit   pairs: of a row that more of them change in one step, the sum is scaled down to so many; None: never
    tally   [V] zeros, one for each thread: where the pairs of a row are counted
    """

    noise: float
    offset: Tensor | None = None
    limit: float | None = None
    tally: Tensor | None = None


def skip_gram(inputs: Tensor, outputs: Tensor, text: Blocks, drawn: Tensor, rate: float, rule: Rule) -> None:
    """A step on the pairs (centre asks, word around answers): inputs [V, D] and outputs [V, D] are changed.

    drawn  [N, M] int64, each block's noise; rate: learning rate, of the sum over pairs
    """
    pairs = text.pairs().to(inputs.dtype)  # [N, L, C]
    asks, answers, noises = rows(inputs, text.centre), rows(outputs, text.around), rows(outputs, drawn)
    scores = torch.bmm(asks, answers.mT)  # [N, L, D] x [N, D, C] -> [N, L, C]
    against = torch.bmm(asks, noises.mT)  # [N, L, D] x [N, D, M] -> [N, L, M]
    if rule.offset is not None:
        scores += rule.offset[text.around][:, None]
        against += rule.offset[drawn][:, None]
    number = pairs.sum(dim=2, keepdim=True)  # [N, L, 1]
    share = rule.noise / drawn.shape[1]
    ups = scores.neg_().sigmoid_().mul_(pairs)  # minus the slope
    downs = against.sigmoid_().mul_(number * -share)
    of_asks = torch.baddbmm(torch.bmm(ups, answers), downs, noises)  # [N, L, D]
    weight = number.sum(dim=1).mul_(share).expand(drawn.shape)  # [N, 1] -> [N, M]
    changes = [
        (text.around, torch.bmm(ups.mT, asks), pairs.sum(dim=1)),
        (drawn, torch.bmm(downs.mT, asks), weight),
    ]
    change(outputs, changes, rate, rule.limit, rule.tally)
    change(inputs, [(text.centre, of_asks, number)], rate, rule.limit, rule.tally)


def cbow(inputs: Tensor, outputs: Tensor, text: Blocks, drawn: Tensor, rate: float, rule: Rule) -> None:
    """A step on the centres: the mean of the context's inputs asks, the centre answers. Arguments as above."""
    pairs = text.pairs().to(inputs.dtype)  # [N, L, C]
    number = pairs.sum(dim=2, keepdim=True)  # [N, L, 1], words of a context
    some = (number > 0).to(inputs.dtype)
    pairs /= number.clamp_(min=1)
    context, answers, noises = rows(inputs, text.around), rows(outputs, text.centre), rows(outputs, drawn)
    asks = torch.bmm(pairs, context)  # [N, L, C] x [N, C, D] -> [N, L, D]
    scores = (asks * answers).sum(dim=2, keepdim=True)  # [N, L, 1]
    against = torch.bmm(asks, noises.mT)  # [N, L, M]
    if rule.offset is not None:
        scores += rule.offset[text.centre][:, :, None]
        against += rule.offset[drawn][:, None]
    share = rule.noise / drawn.shape[1]
    ups = scores.neg_().sigmoid_().mul_(some)
    downs = against.sigmoid_().mul_(some * -share)
    of_asks = torch.baddbmm(ups * answers, downs, noises)  # [N, L, D]
    weight = some.sum(dim=1).mul_(share).expand(drawn.shape)  # [N, 1] -> [N, M]
    changes = [(text.centre, ups * asks, some), (drawn, torch.bmm(downs.mT, asks), weight)]
    change(outputs, changes, rate, rule.limit, rule.tally)
    of_context = torch.bmm(pairs.mT, of_asks)  # [N, C, L] x [N, L, D] -> [N, C, D]
    change(inputs, [(text.around, of_context, pairs.sum(dim=1))], rate, rule.limit, rule.tally)


def rows(table: Tensor, ids: Tensor) -> Tensor:
    """[V, D] and [N, L] -> [N, L, D]"""
    return table.index_select(0, ids.reshape(-1)).view(*ids.shape, -1)


def change(
    table: Tensor,
    parts: Sequence[tuple[Tensor, Tensor, Tensor]],
    rate: float,
    limit: float | None,
    tally: Tensor | None,
) -> None:
    """Adds to the rows of a table [V, D], for each part (ids [N, L], steps [N, L, D], pairs in each step), rate * step.

    A row that occurs twice gets both. Where the pairs of a row sum to more than the limit, its step is scaled by
    limit / sum: one step of gradient descent cannot follow hundreds of pairs of a frequent word, it would overshoot.
    """
    steps = [part[1].reshape(-1, table.shape[1]) for part in parts]
    if limit is not None and tally is not None:
        ids = torch.cat([part[0].reshape(-1) for part in parts])
        scale = scales(ids, ids, torch.cat([part[2].reshape(-1) for part in parts]), limit, tally)
        for step, by in zip(steps, scale.split([len(step) for step in steps]), strict=True):
            step.mul_(by[:, None])
    for part, step in zip(parts, steps, strict=True):
        table.index_add_(0, part[0].reshape(-1), step, alpha=rate)


def scales(ids: Tensor, changed: Tensor, pairs: Tensor, limit: float, tally: Tensor) -> Tensor:
    """limit / pairs of the rows `ids` [n], [n], 1 where that is more.

    changed  [m], rows that pairs change, and how many pairs each time, pairs [m]; tally [V] zeros, and is again
    """
    tally.index_add_(0, changed, pairs)
    scale = limit / tally.index_select(0, ids).clamp_(min=limit)
    tally.index_fill_(0, changed, 0)
    return scale
