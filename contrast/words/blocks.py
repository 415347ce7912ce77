"""A chunk of text as passages of centre words with the words around, some of which are a centre word's context.

S centre words of a passage, W the window, G words of a group, n groups, R = G + 2 W, V words of the vocabulary. A group
of words and the centre words near it are one product.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from contrast.errors import InputError
from contrast.losses.band import Band


class Passage(NamedTuple):
    """Consecutive words that an update trains on.

    centre  [S] int64, the ids of the centre words
    around  [n G], the ids of the same words, with W words before the first and after the last, and padding
    band    the centre words are the queries, the words around the targets; pairs are float32
    """

    centre: Tensor
    around: Tensor
    band: Band

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Places in `centre` and in `around` of all pairs, [P] each, in order of the centre words."""
        group, target, query = self.band.pairs.nonzero(as_tuple=True)
        size = self.band.pairs.shape[1]
        centre, order = (group * size + query - self.band.lead).sort(stable=True)
        return centre, (group * size + target)[order]


class Passages(NamedTuple):
    """The words of a chunk that are kept, in order, as U passages.

    ids, line, reach  [2 W + U S + padding], also with 2 W places of padding before the first word. `line` is the line
                      of the corpus, which no pair crosses; `reach`, 1..W, is how many words to either side the context
                      of a centre word extends; int32. Padding has reach 0, id 0 and line -1
    number            likewise, float32: how many words are in that context
    window, size      W and S
    passages          U
    """

    ids: Tensor
    line: Tensor
    reach: Tensor
    number: Tensor
    window: int
    size: int
    passages: int

    def extended(self, passages: int) -> "Passages":
        """With passages without pairs at the end, if there are fewer than so many."""
        if passages <= self.passages:
            return self
        more = (0, (passages - max(1, self.passages)) * self.size)
        ids, line, reach, number = (
            F.pad(each, more, value=fill)
            for each, fill in ((self.ids, 0), (self.line, -1), (self.reach, 0), (self.number, 0))
        )
        return Passages(ids, line, reach, number, self.window, self.size, passages)

    def passage(self, number: int) -> Passage:
        window, size, group, places = self.window, self.size, *padded(self.size, self.window)
        first, lead = number * size, 2 * window
        reach = self.reach[first + lead : first + lead + size]
        reach = F.pad(reach, (lead, places - size)).unfold(0, group + lead, group)[:, None]  # [n, 1, R], 0 for others
        line = self.line[first : first + lead + places].unfold(0, group + lead, group)[:, None]
        of_targets = self.line[first + window : first + window + places].view(-1, group, 1)
        pairs = (distances(window, group).to(reach.device) <= reach) & (of_targets == line)  # [n, G, R]
        centre, around = slice(first + lead, first + lead + size), self.ids[first + window : first + window + places]
        return Passage(self.ids[centre], around, Band(pairs.float(), self.number[centre, None], lead))


def padded(size: int, window: int) -> tuple[int, int]:
    """G and n G. R is a multiple of 16, which products are fastest with; G is 6 at least."""
    group = -(-(2 * window + 6) // 16) * 16 - 2 * window
    return group, -(-(size + 2 * window) // group) * group


@lru_cache(maxsize=8)
def distances(window: int, group: int) -> Tensor:
    """Distances between the targets and the queries of a group, [G, R] int32; infinite for a word itself."""
    distance = (torch.arange(group)[:, None] + window - torch.arange(group + 2 * window)).abs()
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


def kept_share(counts: Tensor, keep: Tensor) -> float:
    """The share of a text that is trained on, of words with counts [V] that are kept with probabilities [V]."""
    return float((counts * keep).sum() / counts.sum())


def cut(ids: Tensor, keep: Tensor, window: int, size: int, generator: torch.Generator, shrink: bool = True) -> Passages:
    """The passages of a chunk, none if no word is kept.

    ids        [T] int64, -1 between lines
    keep       [V] float32, `keep_probability`; as in word2vec, words that are dropped bring their neighbours closer
    window     W; the reach of a centre word is uniform in 1..W, which weights near words more (Mikolov et al. 2013), or
               always W unless it is to `shrink`
    size       S
    generator  on the CPU
    """
    line = (ids < 0).cumsum(0).int()  # [T]
    uniform = torch.rand(len(ids), generator=generator).to(ids.device)
    kept = ((ids >= 0) & (uniform < keep[ids.clamp(min=0)])).nonzero().squeeze(1)
    reach = torch.randint(1 if shrink else window, window + 1, (len(kept),), generator=generator, dtype=torch.int32).to(
        ids.device
    )
    count = -(-len(kept) // size)
    line, place = line[kept], torch.arange(len(kept), device=ids.device)
    words = line.unique_consecutive(return_counts=True)[1]  # of each line
    ends = words.cumsum(0)
    before, after = (each.repeat_interleave(words) for each in (ends - words, ends))
    number = torch.minimum(reach, place - before) + torch.minimum(reach, after - 1 - place)
    padding = 2 * window, max(0, count - 1) * size + padded(size, window)[1] - len(kept)
    ids, line, reach, number = (
        F.pad(each, padding, value=fill) for each, fill in ((ids[kept], 0), (line, -1), (reach, 0), (number.float(), 0))
    )
    return Passages(ids, line, reach, number, window, size, count)
