"""Steps of skip-gram and CBOW with the gradients in closed form, for every head and output layer that have them.

S centre words of a passage, n groups of G words around that meet R centre words each, N blocks of L = S / N centre
words, K near and M shared rows of the output layer, D dimensions.

The scores of a group and those of a block are one product each, and the head turns them into the slopes of its losses
(`Head.slopes`), so that no pair is ever a row. Gradients are summed over the pairs, as word2vec's one after another, so
the learning rate means the same. Only the rows that a step touches are read and written.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from contrast.encoders import WordTable
from contrast.heads.head import Head
from contrast.losses.band import Band
from contrast.negatives import Table, Tree
from contrast.words.blocks import Passage
from contrast.words.descent import Descent, scalar_load

Loss = tuple[Tensor, Tensor]  # the sum of the losses of all pairs, and the number of the pairs


@torch.no_grad()
def step(
    encoder: WordTable,
    negatives: Table | Tree,
    head: Head,
    passage: Passage,
    method: str,
    drawn: Tensor | None,
    descent: Descent,
    with_loss: bool = False,
) -> Loss | None:
    """One step on the sum of the losses of a passage; if requested, that sum before it.

    drawn  [N, M], noise of its blocks (`draw` of the negatives)

    A pair in CBOW is a centre word with all of its context.
    """
    centre, around, dtype = passage.centre, passage.around, encoder.weight.dtype
    band = Band(passage.band.pairs.to(dtype), passage.band.number.to(dtype), passage.band.lead)
    targets = around.view(band.pairs.shape[:2])  # [n, G]
    if method == "skipgram":
        rows = descent.words(encoder, centre)  # [S, D]
        to_query, load, loss = output_step(rows.vectors, band, targets, negatives, head, drawn, descent, with_loss)
        rows.update(to_query, band.number[:, 0] * load)
        return loss
    weights = band.pairs * band.windows(1 / band.number.clamp(min=1)).mT  # [n, G, R], of the words of a context
    rows = descent.words(encoder, around)
    context = rows.vectors.view(*targets.shape, -1)  # [n, G, D]
    query = band.collect(torch.bmm(weights.mT, context))  # [n, R, G] x [n, G, D] -> [S, D]
    to_query, load, loss = output_step(query, *alone(centre, band), negatives, head, drawn, descent, with_loss)
    to_context = torch.bmm(weights, band.windows(to_query))  # [n, G, R] x [n, R, D] -> [n, G, D]
    rows.update(to_context.view(len(around), -1), weights.square().sum(dim=2).view(-1) * load)
    return loss


def output_step(
    query: Tensor,
    band: Band,
    targets: Tensor,
    negatives: Table | Tree,
    head: Head,
    drawn: Tensor | None,
    descent: Descent,
    with_loss: bool,
) -> tuple[Tensor, Tensor, Loss | None]:
    """One step of the output layer and of the head on queries [S, D].

    Returns their gradient [S, D], their mean load for a pair (`Descent`), and the loss as `step`.
    """
    output = negatives.output(band, targets, drawn, head.scoring().correction)
    near_shape, shared_shape, at = output.near.ids.shape, output.shared.ids.shape, output.near.ids.numel()
    ids = torch.cat([output.near.ids.view(-1), output.shared.ids.reshape(-1)])
    rows = descent.rows(negatives.vectors, ids)
    vectors = rows.vectors
    gradients = torch.empty_like(vectors)
    width = query.shape[1]
    near_rows, near_gradients = (each[:at].view(*near_shape, width) for each in (vectors, gradients))  # [n, K, D]
    shared_rows, shared_gradients = (each[at:].view(*shared_shape, width) for each in (vectors, gradients))  # [N, M, D]
    windows, blocks = band.windows(query), query.view(len(shared_rows), -1, width)  # [n, R, D], [N, L, D]
    dots = torch.bmm(near_rows, windows.mT), torch.bmm(blocks, shared_rows.mT)  # [n, K, R], [N, L, M]

    temperature, weight = float(head.temperature()), head.noise_weight(output.draws)
    learned = [parameter for parameter in head.parameters() if parameter.requires_grad]
    with torch.set_grad_enabled(bool(learned)):
        scores = head.band_scores(output, *dots)
    near, shared = (each.detach() for each in scores)
    loss = (head.total_loss(output, near, shared), band.number.sum()) if with_loss else None
    near, shared = head.slopes(output, near, shared)
    shared_pairs = head.shared_pairs(output, shared)
    if learned:
        first = torch.zeros(1, dtype=torch.int64, device=query.device)
        grads = torch.autograd.grad(scores, learned, (near, shared), retain_graph=True)
        for parameter, grad in zip(learned, grads, strict=True):
            load = scalar_load(parameter, scores, (output.near.total, weight * output.shared.total))
            descent.update(parameter.view(1, -1), first, grad.view(1, -1), load)
    if temperature != 1:
        near, shared = near / temperature, shared / temperature

    to_query = band.collect(torch.bmm(near.mT, near_rows)).view(blocks.shape).baddbmm_(shared, shared_rows)
    row_pairs = torch.cat([output.near.total.sum(dim=2).view(-1), shared_pairs.reshape(-1)])  # [n K + N M]
    pairs = band.number.sum().clamp(min=1)
    divisor = pairs * temperature**2  # scores are dot products divided by the temperature
    load = (band.number[:, 0] @ squares(query)) / divisor  # of a row, for each of its pairs
    query_load = (row_pairs @ squares(vectors)) / divisor
    rates = rows.rates(row_pairs * load).neg_()
    near, shared = near.mul_(rates[:at].view(*near_shape, 1)), shared.mul_(rates[at:].view(shared_shape)[:, None])
    torch.bmm(near, windows, out=near_gradients)
    torch.bmm(shared.mT, blocks, out=shared_gradients)
    rows.add(gradients)
    return to_query.view(query.shape), query_load, loss


def squares(vectors: Tensor) -> Tensor:
    """|v|^2 of each row, [m, D] -> [m], without a tensor of all squares."""
    return torch.linalg.vector_norm(vectors, dim=1).square_()


def alone(centre: Tensor, band: Band) -> tuple[Band, Tensor]:
    """The band in which a centre word that has a context is its own only target, in groups of 8, and the targets."""
    counted = (band.number > 0).to(band.number.dtype)  # [S, 1]
    groups, targets = (F.pad(each, (0, -len(centre) % 8)).view(-1, 8) for each in (counted[:, 0], centre))
    return Band(torch.diag_embed(groups), counted, 0), targets
