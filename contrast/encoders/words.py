"""A table with a vector for each word: the encoder of word2vec."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contrast.errors import InputError


class WordTable(nn.Module):
    """Vectors of `num_ids` words with `num_features` each, at first in +-1 / (2 num_features), as in word2vec.c.

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
