"""Exact perplexity of a next-word model: every probability normalised over all classes, never [tokens, V] at once.

S streams, T words, B queries, D dimensions, V classes, O offsets.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from contrast.errors import InputError

Encode = Callable[[Tensor, Any], tuple[Tensor, Any]]  # ids [S, T], state -> queries [S, T, D], state
Told = dict[str, Tensor]  # a value of each predicted word by name, [B] float64


def streams(ids: Tensor, count: int, first: int) -> tuple[Tensor, Tensor]:
    """A text cut into `count` parallel streams: the word before each place, and the word there, [S, T] each.

    ids    [N] int64, each predicted once; beyond the end of the text stands -1
    first  what stands before the text
    """
    length = -(-len(ids) // count)
    before = torch.cat([ids.new_tensor([first]), ids[:-1]])  # [N]
    rest = count * length - len(ids)
    shape = (count, length)
    return F.pad(before, (0, rest), value=first).view(shape), F.pad(ids, (0, rest), value=-1).view(shape)


@torch.inference_mode()
def over_text(
    encode: Encode,
    told: Callable[[Tensor, Tensor], Told],
    ids: Tensor,
    first: int,
    count: int = 32,
    most: int | None = None,
    chunk: int = 16,
) -> Told:
    """`told(queries [B, D], ids [B])` of the words of a text, each of its values [N], chunk by chunk of the streams.

    encode  the state that it returns goes with the next `chunk` words of the streams; None at their beginning
    ids     [N] int64, classes; first: the class before them
    count   S, streams: each begins without a context but the word before it
    most    words: of every stream only so many that they make this number together, at least one; None: all
    """
    if not len(ids):
        raise InputError("perplexity needs held-out text of at least 1 word")
    before, there = streams(ids, min(count, len(ids), most or len(ids)), first)
    if most is not None:
        before, there = before[:, : most // len(before)], there[:, : most // len(there)]
    state, found = None, []
    for start in range(0, before.shape[1], chunk):
        queries, state = encode(before[:, start : start + chunk], state)  # [S, T, D]
        target = there[:, start : start + chunk]
        some = target >= 0
        found.append(told(queries[some], target[some]))
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


@torch.inference_mode()
def normalised(
    score: Callable[[Tensor, Tensor], Tensor],
    query: Tensor,
    ids: Tensor,
    vectors: Tensor,
    offsets: Tensor,
    block: int = 8192,
) -> tuple[Tensor, Tensor]:
    """Log probabilities of classes under a softmax over all of them, and the log normalisers, [O, B] float64 each.

    score    queries [B, D], vectors [C, D] -> scores [B, C]
    query    [B, D]; ids [B] int64, the classes asked for; vectors [V, D]
    offsets  [O, V], added to the scores: as many softmaxes of the same scores

    Scores of `block` classes at a time, in their own precision; sums over blocks in float64.
    """
    own = torch.empty(offsets.shape[0], len(ids), dtype=torch.float64, device=ids.device)
    log_z = torch.full_like(own, -math.inf)  # [O, B]
    for start in range(0, len(vectors), block):
        scores = score(query, vectors[start : start + block])  # [B, C]
        inside = ((ids >= start) & (ids < start + block)).nonzero().squeeze(1)
        own[:, inside] = scores[inside, ids[inside] - start].double() + offsets[:, ids[inside]]
        for total, offset in zip(log_z, offsets[:, start : start + block].to(scores.dtype), strict=True):
            total.copy_(torch.logaddexp(total, (scores + offset).logsumexp(dim=1).double()))
    return own - log_z, log_z


def perplexity(log_prob: Tensor) -> float:
    """exp of the mean of -log p."""
    return math.exp(-float(log_prob.double().mean()))
