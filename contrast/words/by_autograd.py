"""Steps of skip-gram and CBOW by autograd, for any head and source; applied as those in closed form.

P pairs, Q input vectors that are read, V words, D dimensions.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from contrast.candidates import Candidates
from contrast.encoders import WordTable
from contrast.heads import NCE
from contrast.heads.head import Head
from contrast.negatives import Table, Tree
from contrast.words.blocks import Blocks
from contrast.words.descent import Descent, Rows


class Scored(NamedTuple):
    """A block of which the head has computed the losses. A pair in CBOW is a centre word with all of its context.

    losses      [P]
    targets     [P] int64, the word that each pair predicts
    candidates  with which the head compared the queries
    inputs      [Q] int64, the words whose input vectors make up the queries
    weights     [Q], the weight of each in its query
    """

    losses: Tensor
    targets: Tensor
    candidates: Candidates
    inputs: Tensor
    weights: Tensor


def score(
    encoder: WordTable, negatives: Table | Tree, head: Head, blocks: Blocks, method: str, generator: torch.Generator
) -> list[Scored]:
    """The blocks that have pairs, one after another."""
    scored = []
    for n in range(len(blocks)):
        centre, place = blocks.part(n, n + 1).pairs()[0].nonzero(as_tuple=True)  # [Q] each
        if not len(centre):
            continue
        inputs, targets = blocks.centre[n, centre], blocks.around[n, place]
        weights = torch.ones_like(inputs, dtype=torch.float32)
        if method == "skipgram":
            query = encoder(inputs)  # [P, D]
        else:
            present, pair, number = centre.unique(return_inverse=True, return_counts=True)
            inputs, targets, weights = targets, blocks.centre[n, present], 1 / number[pair]
            context = encoder(inputs)  # [Q, D]
            query = context.new_zeros(len(present), context.shape[1]).index_add(0, pair, context) / number[:, None]
        ((query, candidates),) = negatives(query[None], None, targets, None, generator)
        scored.append(Scored(head(query, candidates)[0], targets, candidates, inputs, weights))
    return scored


def step(encoder: WordTable, negatives: Table | Tree, head: Head, scored: list[Scored], descent: Descent) -> None:
    """One step on the sum of the losses, if there are any. All pairs update the head's parameters, such as a bias."""
    if not scored:
        return
    parts = (encoder, negatives, head)
    parameters = [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]
    total = torch.cat([each.losses for each in scored]).sum()
    grads = torch.autograd.grad(total, parameters, allow_unused=True)
    pairs = {
        encoder.weight: [(each.inputs, each.weights) for each in scored],
        negatives.vectors: [output_pairs(head, each) for each in scored],
    }
    first = torch.zeros(1, dtype=torch.int64, device=total.device)
    all_pairs = [(first, torch.ones_like(each.losses).sum()) for each in scored]
    with torch.no_grad():
        for parameter, grad in zip(parameters, grads, strict=True):
            if grad is None:
                continue
            if parameter not in pairs:
                descent.update(parameter.view(1, -1), [(first, -grad)], all_pairs)
            elif grad.is_sparse:
                grad = grad.coalesce()
                descent.update(parameter, [(grad.indices()[0], grad.values().neg_())], pairs[parameter])
            else:
                ids = torch.arange(len(parameter), device=parameter.device)
                descent.update(parameter, [(ids, -grad)], pairs[parameter])


def output_pairs(head: Head, scored: Scored) -> Rows:
    """Rows of the table or tree that the pairs of a block update, and how many pairs each time, [m] both."""
    classes, pairs = scored.candidates.classes, len(scored.targets)
    assert classes is not None
    if classes.ndim == 2:  # [P, L], the nodes of each pair's path
        nodes = classes[classes >= 0]
        return nodes, torch.ones_like(nodes, dtype=torch.float32)
    # the noise of a pair counts as k words in NCE, and as one in a softmax
    number = (head.num_noise or len(classes)) if isinstance(head, NCE) else 1
    noise = torch.full_like(classes, number * pairs / max(1, len(classes)), dtype=torch.float32)
    return torch.cat([scored.targets, classes]), torch.cat([noise.new_ones(pairs), noise])
