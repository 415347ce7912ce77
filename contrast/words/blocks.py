"""A span of text as blocks: centre words, the words around them, and which of these are a centre's context.

N blocks, L centres of a block, W the window, C = L + 2 W places around, T places of a span, V words. A block's L x C
scores are one matrix product, of which the pairs are a band: every row of a table is read and written once a block.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from contrast.errors import InputError


class Blocks(NamedTuple):
    """Words of a span that were kept, in order.

    centre  [N, L] int64 ids; around [N, C], the same with W words before the first and after the last centre
    reach   [N, L] int32, how far the context of a centre goes, 1..W; 0 behind the end of the text
    line, lines_around  [N, L] and [N, C] int32, the line of the corpus that a word stands in: no pair crosses lines
    """

    centre: Tensor
    around: Tensor
    reach: Tensor
    line: Tensor
    lines_around: Tensor

    def __len__(self) -> int:
        return len(self.centre)

    def part(self, start: int, stop: int) -> "Blocks":
        return Blocks(*(each[start:stop] for each in self))

    def pairs(self) -> Tensor:
        """Whether a word around is in a centre's context, [N, L, C] bool; never the centre itself."""
        length, places = self.centre.shape[1], self.around.shape[1]
        near = (
            distances(length, (places - length) // 2).to(self.reach.device) <= self.reach[:, :, None]
        )  # [L, C] x [N, L, 1]
        return near & (self.line[:, :, None] == self.lines_around[:, None, :])


@lru_cache(maxsize=8)
def distances(length: int, window: int) -> Tensor:
    """How far apart centres and places around are, [L, C] int32; more than any reach for the centre's own place."""
    apart = (torch.arange(length)[:, None] + window - torch.arange(length + 2 * window)).abs()
    return apart.masked_fill_(apart == 0, torch.iinfo(torch.int32).max).int()


def keep_probability(counts: Tensor, threshold: float) -> Tensor:
    """Probability that an occurrence of a word is kept, [V] float32: min(1, sqrt(t / f) + t / f), f its share.

    As word2vec.c has it; Mikolov et al. (2013, eq. 5) print sqrt(t / f) alone. A threshold t of 0 keeps all words.
    """
    if not 0 <= threshold < 1:
        raise InputError(f"frequent words are subsampled from a share in [0, 1) on, got {threshold}; 0 keeps them all")
    if threshold == 0:
        return torch.ones(len(counts))
    share = threshold * counts.sum() / counts.double()  # t / f
    return (share.sqrt() + share).clamp(max=1).float()


def blocks(ids: Tensor, keep: Tensor, window: int, length: int, generator: torch.Generator) -> Blocks:
    """The blocks of a span.

    ids     [T] int64, -1 between lines
    keep    [V] float32, `keep_probability`: words that are dropped bring their neighbours closer, as in word2vec
    window  W; a centre's own reach is drawn uniformly from 1..W, which weights near words more (Mikolov et al. 2013)

    N is 0 where no word was kept. The random numbers are drawn on the CPU.
    """
    line = (ids < 0).cumsum(0).int()  # [T]
    chance = torch.rand(len(ids), generator=generator).to(ids.device)
    kept = ((ids >= 0) & (chance < keep[ids.clamp(min=0)])).nonzero().squeeze(1)
    words = len(kept)
    reach = torch.randint(1, window + 1, (words,), generator=generator, dtype=torch.int32).to(ids.device)
    behind = -words % length
    padded_ids = _padded(ids[kept], window, window + behind, 0)
    padded_line = _padded(line[kept], window, window + behind, -1)
    padded_reach = _padded(reach, window, window + behind, 0)
    whole = slice(window, window + words + behind)
    around = length + 2 * window
    return Blocks(
        padded_ids[whole].view(-1, length),
        padded_ids.unfold(0, around, length) if words else padded_ids.new_empty(0, around),
        padded_reach[whole].view(-1, length),
        padded_line[whole].view(-1, length),
        padded_line.unfold(0, around, length) if words else padded_line.new_empty(0, around),
    )


def _padded(values: Tensor, before: int, after: int, value: int) -> Tensor:
    return torch.nn.functional.pad(values, (before, after), value=value)
