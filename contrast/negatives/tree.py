"""Hierarchical softmax: a class is the turns on its path through a binary tree (Morin and Bengio 2005).

P views, B queries of a view, N classes, L nodes on the longest path, D dimensions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contrast.candidates import ABSENT, Candidates, as_rows
from contrast.errors import InputError
from contrast.losses.band import Band, ClassRows, Columns, Output
from contrast.losses.similarity import similarity
from contrast.negatives.source import Queries, Source
from contrast.samplers import HuffmanTree, huffman


class Tree(Source):
    """A vector for each of the N - 1 inner nodes; ids are classes, the leaves. For the NCE head without a bias.

    counts  of the classes, for a Huffman tree (Mikolov et al. 2013, section 2.1), or a `HuffmanTree` of your own
    dim     D
    sparse  the gradient is sparse, as that of a `Table`
    shared  number of nodes near the root that `output` scores for all queries. It changes the speed and not the
            results: too many and too few are both slow

    P(class | query) is the product over its path of sigmoid((1 - 2 turn) x_node . query), and sums to 1 over the
    classes. The candidates are the nodes of the path, negated where the turn is 1, and all positive: the logistic loss
    is then -log P.
    """

    ids_are_rows = needs_labels = True

    path: Tensor
    sign: Tensor
    top: Tensor  # [T], the nodes that most paths pass
    top_turns: Tensor  # [N, l], for each class the columns of its left (0..T-1) and right (T..2 T-1) turns; 2 T: none
    below: Tensor  # the other nodes of each class, one class after another
    below_left: Tensor  # whether a class turns left at these nodes
    below_start: Tensor  # [N], where a class begins; below_number: how many nodes it has
    below_number: Tensor

    def __init__(self, counts: Tensor | HuffmanTree, dim: int, sparse: bool = False, shared: int = 31) -> None:
        super().__init__()
        tree = counts if isinstance(counts, HuffmanTree) else huffman(counts)
        if dim < 1:
            raise InputError(f"a tree needs vectors of at least 1 dimension, got {dim}")
        self.sparse = sparse
        on_path = torch.arange(tree.path.shape[1]) < tree.length[:, None]  # [N, L]
        self.register_buffer("path", torch.where(on_path, tree.path, -1).to(torch.int32))  # [N, L], -1 beyond its end
        self.register_buffer("sign", 1 - 2 * tree.turn.to(torch.int8))  # [N, L], 1 or -1
        self.vectors = nn.Parameter(torch.zeros(len(tree.path) - 1, dim))
        self.shared = min(shared, len(self.vectors))
        self._arrange()
        self.register_load_state_dict_post_hook(Tree._arrange)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        ids: Tensor,
        groups: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Queries:
        """One direction for all P views. `key` and `groups` are not used. InputError for ids that are no classes."""
        flat, ids = query.flatten(0, 1), as_rows(ids, len(self.path)).repeat(len(query))  # [P B, D], [P B]
        path, sign = self.path[ids].long(), self.sign[ids]  # [P B, L]
        rows = path.clamp(min=0)  # beyond the end of a path this is node 0, which does not count there
        nodes = F.embedding(rows, self.vectors, sparse=True) if self.sparse else self.vectors[rows]  # [P B, L, D]
        nodes = nodes * sign[:, :, None]
        positive = torch.zeros_like(ids)
        return [(flat, Candidates(nodes, positive, ids=torch.where(path >= 0, 0, ABSENT), classes=path))]

    def has_output(self) -> bool:
        return True

    def draw(self, blocks: int, generator: torch.Generator | None = None) -> None:
        """A tree has no noise."""

    def output(self, band: Band, ids: Tensor, drawn: Tensor | None = None, corrected: bool = True) -> Output:
        """The nodes that the pairs of a band are scored against, as in `forward`.

        ids  [n, G], the classes that are the band's targets

        The nodes that most paths pass are shared by all queries. A product of the pairs and of the turns of the targets
        counts how many pairs of a query turn left and right there. The nodes below belong to few targets and are near
        columns, one for each target and node.
        """
        (groups, group, width), flat = band.pairs.shape, ids.reshape(-1)  # [n G]
        count = len(self.top)  # T
        turns = band.pairs.new_zeros(len(flat), 2 * count + 1)
        turns.scatter_(1, self.top_turns.index_select(0, flat).long(), 1)
        turns = band.collect(torch.bmm(band.pairs.mT, turns.view(groups, group, -1)))  # [S, 2 T + 1]
        left = turns[:, :count]
        both = left + turns[:, count : 2 * count]
        shared = Columns(self.top[None], both[None], (left / both.clamp(min=1))[None])

        number = self.below_number.index_select(0, flat)  # [n G], nodes below of each target
        ends, of_group = number.cumsum(0), number.view(groups, group).sum(dim=1)
        columns = int(of_group.max())
        target = torch.repeat_interleave(number, output_size=int(ends[-1]))  # [m], of all nodes below
        place = torch.arange(len(target), device=ids.device)
        pads = columns * torch.arange(groups, device=ids.device) - of_group.cumsum(0) + of_group  # before a group
        column = place + pads.repeat_interleave(group).index_select(0, target)
        node = place + (self.below_start.index_select(0, flat) - ends + number).index_select(0, target)
        nodes = torch.full((groups * columns,), len(self.below) - 1, device=ids.device).index_copy_(0, column, node)
        owner = torch.full_like(nodes, len(flat)).index_copy_(0, column, target)
        total = F.pad(band.pairs.view(-1, width), (0, 0, 0, 1)).index_select(0, owner).view(groups, columns, width)
        nodes, left = (part.index_select(0, nodes).view(groups, columns) for part in (self.below, self.below_left))
        near = Columns(nodes.long(), total, left[:, :, None].to(total.dtype))
        return Output(band, near, shared)

    def has_class_rows(self) -> bool:
        return True

    def class_rows(self) -> ClassRows:
        """The nodes of each class's path, positive if it turns left there. `huffman` numbers those at the root last."""
        on_path = self.path >= 0
        start = F.pad(on_path.sum(dim=1).cumsum(0), (1, 0))
        nodes = len(self.vectors)
        upper = range(max(0, nodes - 1023), nodes)
        return ClassRows(start, self.path[on_path], (self.sign[on_path] > 0).float(), common=upper)

    def _arrange(self, *_: object) -> None:
        """Divides the nodes into those near the root and those below, which are listed class after class."""
        nodes = self.path.clamp(min=0).long()
        on_path, left = self.path >= 0, self.sign > 0
        weight = torch.exp2(-on_path.sum(dim=1, keepdim=True).double()).expand(nodes.shape)  # about P(class)
        visits = torch.bincount(nodes[on_path], weight[on_path], len(self.vectors))
        top = visits.topk(self.shared).indices.sort().values
        rank = torch.full_like(visits, -1, dtype=torch.int64).index_copy_(
            0, top, torch.arange(len(top), device=top.device)
        )
        is_top = (rank[nodes] >= 0) & on_path
        turns = torch.where(is_top, rank[nodes] + torch.where(left, 0, len(top)), 2 * len(top))
        turns = turns.sort(dim=1).values[:, : int(is_top.sum(dim=1).max())]  # those of no class last
        below = on_path & ~is_top
        number = below.sum(dim=1)
        parts = {
            "top": top,
            "top_turns": turns.short(),
            "below_number": number,
            "below_start": number.cumsum(0) - number,
        }
        # the last entry of `below` stands for no node
        parts |= {"below": torch.cat([self.path[below], top[-1:].int()]), "below_left": F.pad(left[below], (0, 1))}
        for name, value in parts.items():
            self.register_buffer(name, value, persistent=False)

    def log_prob(self, query: Tensor, temperature: Tensor | float = 1.0, cosine: bool = False) -> Tensor:
        """Log probabilities of every class, [B, D] -> [B, N]."""
        scores = similarity(query, self.vectors, cosine) / temperature  # [B, N - 1]
        total = scores.new_zeros(len(query), len(self.path))
        for path, sign in zip(self.path.T, self.sign.T, strict=True):  # level by level: [B, N], never [B, N, L]
            each = F.logsigmoid(scores[:, path.clamp(min=0).long()] * sign)
            total = total + each.masked_fill(path < 0, 0)
        return total
