"""Hierarchical softmax: a class is the turns on its path through a binary tree (Morin and Bengio 2005).

P views, B queries of a view, N classes, L nodes on the longest path, D dimensions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contrast.candidates import ABSENT, Candidates
from contrast.errors import InputError
from contrast.losses.similarity import similarity
from contrast.negatives.source import Queries, Source, as_rows
from contrast.samplers import HuffmanTree, huffman


class Tree(Source):
    """A vector for each of the N - 1 inner nodes; ids are classes, the leaves. For the NCE head without a bias.

    counts  of the classes, for a Huffman tree (Mikolov et al. 2013, section 2.1), or a `HuffmanTree` of your own
    dim     D
    sparse  the gradient is sparse, as that of a `Table`

    P(class | query) is the product over its path of sigmoid((1 - 2 turn) x_node . query), and sums to 1 over the
    classes. The candidates are the nodes of the path, negated where the turn is 1, and all positive: the logistic loss
    is then -log P.
    """

    ids_are_rows = needs_labels = True

    path: Tensor
    sign: Tensor

    def __init__(self, counts: Tensor | HuffmanTree, dim: int, sparse: bool = False) -> None:
        super().__init__()
        tree = counts if isinstance(counts, HuffmanTree) else huffman(counts)
        if dim < 1:
            raise InputError(f"a tree needs vectors of at least 1 dimension, got {dim}")
        self.sparse = sparse
        on_path = torch.arange(tree.path.shape[1]) < tree.length[:, None]  # [N, L]
        self.register_buffer("path", torch.where(on_path, tree.path, -1).to(torch.int32))  # [N, L], -1 beyond its end
        self.register_buffer("sign", 1 - 2 * tree.turn.to(torch.int8))  # [N, L], 1 or -1
        self.vectors = nn.Parameter(torch.zeros(len(tree.path) - 1, dim))

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

    def log_prob(self, query: Tensor, temperature: Tensor | float = 1.0, cosine: bool = False) -> Tensor:
        """Log probabilities of every class, [B, D] -> [B, N]."""
        scores = similarity(query, self.vectors, cosine) / temperature  # [B, N - 1]
        total = scores.new_zeros(len(query), len(self.path))
        for path, sign in zip(self.path.T, self.sign.T, strict=True):  # level by level: [B, N], never [B, N, L]
            each = F.logsigmoid(scores[:, path.clamp(min=0).long()] * sign)
            total = total + each.masked_fill(path < 0, 0)
        return total
