"""A chunk of text as blocks of centre words with the words around them, some of which are a centre word's context.

T positions of a chunk, N blocks, L centre words of a block, W the window, C = L + 2 W words around, V words of the
vocabulary. The L x C scores of a block are one matrix product, in which the pairs form a band, so that every row of a
table is read and written once a block.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from contrast.errors import InputError


class Blocks(NamedTuple):
    """The words of a chunk that are kept, in order.

    centre        [N, L] int64, the ids of the centre words
    around        [N, C], the ids of the same words, with W words before the first and W after the last
    reach         [N, L] int32, how many words to either side a centre word's context extends, 1..W; 0 for padding
    line          [N, L] int32, the line of the corpus that a centre word is in; no pair crosses lines
    lines_around  [N, C] int32, likewise for `around`
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
        """Whether a word around is in a centre word's context, [N, L, C] bool; a centre word itself never is."""
        length, around = self.centre.shape[1], self.around.shape[1]
        distance = distances(length, (around - length) // 2).to(self.reach.device)  # [L, C]
        return (distance <= self.reach[:, :, None]) & (self.line[:, :, None] == self.lines_around[:, None, :])


@lru_cache(maxsize=8)
def distances(length: int, window: int) -> Tensor:
    """Distances between centre words and words around, [L, C] int32; infinite for a centre word itself."""
    distance = (torch.arange(length)[:, None] + window - torch.arange(length + 2 * window)).abs()
    return distance.masked_fill_(distance == 0, torch.iinfo(torch.int32).max).int()


def keep_probability(counts: Tensor, threshold: float) -> Tensor:
    """Probability that an occurrence of a word is kept, [V] float32: min(1, sqrt(t / f) + t / f).

    f is the word's share of the text, t the threshold; 0 keeps all words. This is the formula of word2vec.c; Mikolov et
    al. (2013, eq. 5) print sqrt(t / f) alone. Raises InputError for a threshold outside [0, 1).
    """
    if not 0 <= threshold < 1:
        raise InputError(f"the threshold for subsampling frequent words must be in [0, 1), got {threshold}")
    if threshold == 0:
        return torch.ones(len(counts))
    ratio = threshold * counts.sum() / counts.double()  # t / f
    return (ratio.sqrt() + ratio).clamp(max=1).float()


def cut_blocks(ids: Tensor, keep: Tensor, window: int, length: int, generator: torch.Generator) -> Blocks:
    """The blocks of a chunk. N is 0 if no word is kept.

    ids        [T] int64, -1 between lines
    keep       [V] float32, `keep_probability`; as in word2vec, words that are dropped bring their neighbours closer
    window     W; the reach of a centre word is uniform in 1..W, which weights near words more (Mikolov et al. 2013)
    length     L
    generator  on the CPU
    """
    line = (ids < 0).cumsum(0).int()  # [T]
    uniform = torch.rand(len(ids), generator=generator).to(ids.device)
    kept = ((ids >= 0) & (uniform < keep[ids.clamp(min=0)])).nonzero().squeeze(1)
    reach = torch.randint(1, window + 1, (len(kept),), generator=generator, dtype=torch.int32).to(ids.device)
    padding = -len(kept) % length

    def centre_and_around(values: Tensor, fill: int) -> tuple[Tensor, Tensor]:
        padded = F.pad(values, (window, window + padding), value=fill)
        width = length + 2 * window
        around = padded.unfold(0, width, length) if len(kept) else padded.new_empty(0, width)
        return padded[window : len(padded) - window].view(-1, length), around

    centre, around = centre_and_around(ids[kept], 0)
    lines, lines_around = centre_and_around(line[kept], -1)
    return Blocks(centre, around, centre_and_around(reach, 0)[0], lines, lines_around)
