"""Steps of skip-gram and CBOW for any head and source, by autograd; rows updated in place, limited as in closed_form.

P pairs, Q words looked up to ask with, V words, D dimensions.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from contrast.candidates import Candidates
from contrast.heads import NCE
from contrast.words.blocks import Blocks
from contrast.words.closed_form import scales


class Questions(NamedTuple):
    """What the pairs of a block ask: of each pair with skip-gram, of each centre that has a context with CBOW.

    query  [P, D]; answers [P] int64, the words that answer
    asking, share  [Q] the words whose vectors the queries are made of, and how much of a query each of them is
    """

    query: Tensor
    answers: Tensor
    asking: Tensor
    share: Tensor


def questions(encoder: nn.Module, text: Blocks, method: str) -> Questions:
    """Of the pairs of one block."""
    block, centre, place = text.pairs().nonzero(as_tuple=True)  # [P] each
    if method == "skipgram":
        asking = text.centre[block, centre]
        share = torch.ones_like(asking, dtype=torch.float32)
        return Questions(encoder(asking), text.around[block, place], asking, share)
    some, which, number = centre.unique(return_inverse=True, return_counts=True)
    asking = text.around[block, place]
    context = encoder(asking)  # [Q, D]
    total = context.new_zeros(len(some), context.shape[1]).index_add(0, which, context)
    return Questions(total / number[:, None], text.centre[0, some], asking, 1 / number[which])


def step(
    model: Any,
    asked: Sequence[Questions],
    candidates: Sequence[Candidates],
    losses: Tensor,
    rate: float,
    limit: float | None,
    tally: Tensor,
) -> None:
    """Gradient descent on the sum of the `losses` of the pairs `asked`, block by block with their `candidates`.

    Of a row that more pairs change than the limit, the step is scaled down to so many. It is changed by the pairs that
    it answers and, as noise, by its share of that of all pairs of a block. Any other parameter, a learned bias or
    temperature, is changed by every pair. tally  [V] zeros, and is again
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
    asking = [(each.asking, each.share) for each in asked]
    answering = [answered(model.head, *each) for each in zip(asked, candidates, strict=True)]
    with torch.no_grad():
        for parameter, grad in zip(parameters, found, strict=True):
            if grad is None:
                continue
            row, change = None, grad
            if grad.is_sparse:  # row by row: coalescing would sort them first
                row, change = grad._indices()[0], grad._values()
            rows = asking if parameter is model.encoder.weight else answering
            if limit is not None and (rows is asking or parameter is model.negatives.vectors):
                changed, pairs = (torch.cat(part) for part in zip(*rows, strict=True))
                at = torch.arange(len(parameter), device=parameter.device) if row is None else row
                change = change * scales(at, changed, pairs.to(tally.dtype), limit, tally)[:, None]
            elif limit is not None:
                change = change * min(1.0, limit / max(1, sum(len(each.answers) for each in asked)))
            if row is None:
                parameter.sub_(change, alpha=rate)
            else:
                parameter.index_add_(0, row, change, alpha=-rate)


def answered(head: nn.Module, asked: Questions, candidates: Candidates) -> tuple[Tensor, Tensor]:
    """Rows of the table or tree that the pairs of a block change, and how many pairs each time, [m] both."""
    classes, pairs = candidates.classes, len(asked.answers)
    assert classes is not None
    if classes.ndim == 2:  # the nodes of each pair's path
        nodes = classes[classes >= 0]
        return nodes, torch.ones_like(nodes, dtype=torch.float32)
    # the noise of a pair is worth k words in NCE, in a softmax one
    noise = (head.num_noise or len(classes)) if isinstance(head, NCE) else 1
    weight = torch.full_like(classes, noise * pairs / max(1, len(classes)), dtype=torch.float32)
    return torch.cat([asked.answers, classes]), torch.cat([torch.ones_like(asked.share[:1]).expand(pairs), weight])
