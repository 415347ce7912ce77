"""Steps of skip-gram and CBOW by autograd, for any head and source; applied as those in closed form.

P pairs, Q input vectors that are read, V words, D dimensions.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from contrast.candidates import Candidates
from contrast.encoders import WordTable
from contrast.heads.head import Head
from contrast.negatives import Table, Tree
from contrast.words.blocks import Passage
from contrast.words.descent import Descent, scalar_load


class Scored(NamedTuple):
    """A block of which the head has computed the losses. A pair in CBOW is a centre word with all of its context.

    losses      [P]
    targets     [P] int64, the word that each pair predicts
    queries     [P, D]
    candidates  with which the head compared the queries
    inputs      [Q] int64, the words whose input vectors make up the queries
    pairs       [Q] int64, the query that each is part of
    weights     [Q], the weight of each in its query
    """

    losses: Tensor
    targets: Tensor
    queries: Tensor
    candidates: Candidates
    inputs: Tensor
    pairs: Tensor
    weights: Tensor


def score(
    encoder: WordTable,
    negatives: Table | Tree,
    head: Head,
    passage: Passage,
    method: str,
    block: int,
    generator: torch.Generator,
) -> list[Scored]:
    """The blocks of a passage that have pairs, one after another. A block has so many centre words."""
    scored = []
    centres, places = passage.pairs()
    for start in range(0, len(passage.centre), block):
        of_block = (centres >= start) & (centres < start + block)
        centre, place = centres[of_block], places[of_block]  # [Q] each
        if not len(centre):
            continue
        inputs, targets = passage.centre[centre], passage.around[place]
        pair, weights = torch.arange(len(inputs), device=inputs.device), encoder.weight.new_ones(len(inputs))
        if method == "skipgram":
            query = encoder(inputs)  # [P, D]
        else:
            present, pair, number = centre.unique(return_inverse=True, return_counts=True)
            inputs, targets, weights = targets, passage.centre[present], 1 / number[pair].to(weights.dtype)
            context = encoder(inputs)  # [Q, D]
            query = context.new_zeros(len(present), context.shape[1]).index_add(0, pair, context) / number[:, None]
        ((query, candidates),) = negatives(query[None], None, targets, None, generator)
        losses, _ = head(query, candidates)
        scored.append(Scored(losses, targets, query, candidates, inputs, pair, weights))
    return scored


def step(encoder: WordTable, negatives: Table | Tree, head: Head, scored: list[Scored], descent: Descent) -> None:
    """One step on the sum of the losses, if there are any. All pairs update the head's parameters, such as a bias."""
    if not scored:
        return
    parts = (encoder, negatives, head)
    parameters = [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]
    total = torch.cat([each.losses for each in scored]).sum()
    grads = torch.autograd.grad(total, parameters, allow_unused=True)
    counts = [pair_counts(head, each) for each in scored]
    of_outputs, of_inputs = zip(*map(row_pairs, scored, counts), strict=True)
    with torch.no_grad():
        scale = 1 if head.cosine else float(head.temperature()) ** -2
        load = scale * torch.cat([each.queries.square().sum(dim=1) for each in scored]).mean()
        query_load = scale * torch.cat([*map(compared, scored, counts)]).mean()
    pairs = {encoder.weight: (of_inputs, query_load), negatives.vectors: (of_outputs, load)}
    scalars = {parameter for each in head.scalars() for parameter in each.parameters()}
    number = total.new_tensor([sum(len(each.losses) for each in scored)])  # of pairs
    with torch.no_grad():
        for parameter, grad in zip(parameters, grads, strict=True):
            if grad is None:
                continue
            if parameter not in pairs:
                load = head_load(head, scored, parameter) if parameter in scalars else number
                descent.update(parameter.view(1, -1), number.long().zero_(), grad.view(1, -1), load)
                continue
            of_rows, load = pairs[parameter]
            updated, number_of_pairs = map(torch.cat, zip(*of_rows, strict=True))
            ids, at = updated.unique(return_inverse=True)
            grad = grad.coalesce() if grad.is_sparse else grad
            rows = grad.values()[torch.searchsorted(grad.indices()[0], ids)] if grad.is_sparse else grad[ids]
            descent.update(parameter, ids, rows, load * torch.bincount(at, number_of_pairs))


def row_pairs(scored: Scored, counted: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Rows of the table or tree, and rows of the input vectors, each with how many pairs (`pair_counts`) update it."""
    classes = scored.candidates.classes
    assert classes is not None
    if classes.ndim == 2:  # [P, L], the nodes of each pair's path
        outputs = classes[classes >= 0], counted[classes >= 0]
    else:
        outputs = torch.cat([scored.targets, classes]), torch.cat([counted[:, 0], counted[:, 1:].sum(dim=0)])
    return outputs, (scored.inputs, scored.weights.square())


def compared(scored: Scored, counted: Tensor) -> Tensor:
    """Sum of |v|^2 over what each pair is compared with, [P], as often as `pair_counts` says."""
    candidates = scored.candidates
    squares = candidates.vectors.square().sum(dim=-1)  # [C] or [P, L]
    if candidates.positives is None:
        return (counted * squares).sum(dim=1)
    return counted[:, 0] * candidates.positives[:, 0].square().sum(dim=1) + counted[:, 1:] @ squares


@torch.no_grad()
def pair_counts(head: Head, scored: Scored) -> Tensor:
    """How many pairs each score counts as in the limit on the pairs of a row, [P, 1 + C], or [P, L] of nodes."""
    candidates, counted = scored.candidates, weights(head, scored).expand(len(scored.targets), -1)
    if candidates.excluded_groups is None:
        return counted
    return head.counts_of_all_classes(scored.queries, candidates, counted)


def head_load(head: Head, scored: list[Scored], parameter: Tensor) -> Tensor:
    """The load [1] of a learned scalar of the head."""
    with torch.enable_grad():
        scores = [head.scores(each.queries, each.candidates).values for each in scored]  # [P, L] or [P, 1 + C]
    return scalar_load(parameter, scores, [weights(head, each) for each in scored])


def weights(head: Head, scored: Scored) -> Tensor:
    """How often each score of a pair counts: of its target and all noise, [1 + C], or of its path's nodes, [P, L]."""
    candidates = scored.candidates
    assert candidates.classes is not None
    if candidates.positives is None:
        return (candidates.classes >= 0).to(scored.weights)
    draws = len(candidates) - (candidates.excluded_groups is not None)  # without the target
    noise = scored.weights.new_full((len(candidates.classes),), head.noise_weight(max(1, draws)))
    return torch.cat([noise.new_ones(1), noise])
