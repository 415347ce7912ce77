"""Exact perplexity of a next-word model: every probability normalised over all classes, never [tokens, V] at once.

S streams, T words, B queries, D dimensions, V classes, O offsets.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from contrast.candidates import as_ids
from contrast.errors import InputError

State = TypeVar("State")  # of a recurrent encoder
Encode = Callable[[Tensor, State | None], tuple[Tensor, State]]  # ids [S, T], state -> queries [S, T, D], state
PerWord = dict[str, Tensor]  # by name, a value of each predicted word, [B] float64


def streams(ids: Tensor, count: int, first: int) -> tuple[Tensor, Tensor]:
    """A text cut into `count` parallel streams: the word before each place, and the word at it, [S, T] each.

    ids    [N] int64, each predicted once; places beyond the end of the text have the id -1
    first  the class before the text
    """
    length = -(-len(ids) // count)
    before = torch.cat([ids.new_tensor([first]), ids[:-1]])  # [N]
    rest = count * length - len(ids)
    shape = (count, length)
    return F.pad(before, (0, rest), value=first).view(shape), F.pad(ids, (0, rest), value=-1).view(shape)


@torch.inference_mode()
def over_text(
    encode: Encode[State],
    measure: Callable[[Tensor, Tensor], PerWord],
    ids: Tensor,
    first: int,
    count: int = 32,
    most: int | None = None,
    chunk: int = 16,
) -> PerWord:
    """`measure(queries [B, D], ids [B])` of the words of a text, each of its values [N], chunk by chunk of the streams.

    encode  the state that it returns is given to it with the next `chunk` words of the streams; None at their beginning
    ids     [N] int64, classes; first: the class before them
    count   S, streams: each begins without a context but the word before it
    most    at most so many words, an equal number of each stream, but at least one of each; None: all
    """
    ids = as_ids("words of a text", ids)
    if not len(ids):
        raise InputError("perplexity needs held-out text of at least 1 word")
    if most is not None and most < 1:
        raise InputError(f"perplexity needs at least 1 word, got most={most}")
    if int(ids.min()) < 0:
        raise InputError(f"words of a text are classes from 0, but {int((ids < 0).sum())} of {len(ids)} are below")
    before, target = streams(ids, min(count, len(ids), len(ids) if most is None else most), first)
    if most is not None:
        before, target = before[:, : most // len(before)], target[:, : most // len(target)]
    state: State | None = None
    results = []
    for start in range(0, before.shape[1], chunk):
        queries, state = encode(before[:, start : start + chunk], state)  # [S, T, D]
        words = target[:, start : start + chunk]
        valid = words >= 0
        results.append(measure(queries[valid], words[valid]))
    return {name: torch.cat([part[name] for part in results]) for name in results[0]}


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
    query    [B, D]; ids [B] int64, the class of each query; vectors [V, D]
    offsets  [O, V], added to the scores: each of the O rows gives a softmax of its own

    Scores of `block` classes at a time, in their own precision; sums over blocks in float64.
    """
    ids = as_ids("classes", ids)
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(vectors):
        raise InputError(f"classes must be in 0..{len(vectors) - 1}, but are in {int(ids.min())}..{int(ids.max())}")
    target = torch.empty(offsets.shape[0], len(ids), dtype=torch.float64, device=ids.device)
    log_z = torch.full_like(target, -math.inf)  # [O, B]
    for start in range(0, len(vectors), block):
        scores = score(query, vectors[start : start + block])  # [B, C]
        inside = ((ids >= start) & (ids < start + block)).nonzero().squeeze(1)
        target[:, inside] = scores[inside, ids[inside] - start].double() + offsets[:, ids[inside]]
        for total, offset in zip(log_z, offsets[:, start : start + block].to(scores.dtype), strict=True):
            total.copy_(torch.logaddexp(total, (scores + offset).logsumexp(dim=1).double()))
    return target - log_z, log_z


def perplexity(log_prob: Tensor) -> float:
    """exp of the mean of -log p over the words, log_prob [N]."""
    return math.exp(-float(log_prob.double().mean()))
