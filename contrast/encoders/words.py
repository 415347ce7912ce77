"""Encoders of words: a table of vectors, as in word2vec, and a recurrent net over the preceding words.

The features of the recurrent net are the queries of a next-word model. B sequences, T words, V ids, E dimensions of a
word vector, H of the state, L layers, F = H + 1 features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contrast.errors import InputError


class WordTable(nn.Module):
    """Vectors of `num_ids` words with `num_features` each, at first in +-1 / (2 num_features), as in word2vec.c.

    num_features  dimensions of a vector
    forward(ids int64 [...]) -> [..., num_features]. Its gradient is sparse, so no tensor of the table's size is made.
    """

    def __init__(self, num_ids: int, num_features: int = 100) -> None:
        super().__init__()
        if num_ids < 2 or num_features < 1:
            raise InputError(f"a table of words needs 2 words and 1 feature at least: {num_ids}, {num_features}")
        self.num_features = num_features
        self.weight = nn.Parameter((torch.rand(num_ids, num_features) - 0.5) / num_features)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight, sparse=True)

    def whole(self) -> Tensor:
        """The vectors of all words, [num_ids, D]."""
        return self.weight

    def row_lists(self) -> tuple[Tensor, Tensor]:
        """start [num_ids + 1] and row [m]: a word w is the mean of the rows row[start[w]:start[w + 1]] of `weight`."""
        every = torch.arange(len(self.weight) + 1)
        return every, every[:-1]


class GRU(nn.Module):
    """Word vectors and gated recurrent units (Cho et al. 2014); the features are the last layer's states and a 1.

    num_ids  V, number of different ids
    dim      E
    hidden   H
    layers   L
    dropout  rate on the word vectors, between layers and on the states
    sparse   gives the word vectors a sparse gradient, which only some optimisers accept, such as Adagrad

    The constant feature 1 makes the last component of a class's vector its bias. `num_features` includes it.
    """

    def __init__(
        self,
        num_ids: int,
        dim: int = 128,
        hidden: int = 128,
        layers: int = 1,
        dropout: float = 0.0,
        sparse: bool = True,
    ) -> None:
        super().__init__()
        if num_ids < 1 or dim < 1 or hidden < 1 or layers < 1 or not 0 <= dropout < 1:
            raise InputError(
                "a GRU needs 1 id, dimension, hidden unit and layer at least, and dropout in [0, 1): "
                f"{num_ids}, {dim}, {hidden}, {layers}, {dropout}"
            )
        self.num_features = hidden + 1
        self.words = nn.Embedding(num_ids, dim, sparse=sparse)
        nn.init.normal_(self.words.weight, std=0.1)
        self.gru = nn.GRU(dim, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features [B, T, F] after each word of `ids` [B, T], and the state [L, B, H] after the last one.

        state  [L, B, H] after the words before `ids`; None: `ids` is the beginning of the text
        """
        states, state = self.gru(self.dropout(self.words(ids)), state)  # [B, T, H], [L, B, H]
        return torch.cat([self.dropout(states), states.new_ones(*ids.shape, 1)], dim=2), state
