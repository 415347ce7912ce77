"""Sources of negatives: a call only reads a source's state, and `update` and `advance` change it."""

from contrast.negatives.bank import Bank
from contrast.negatives.in_batch import InBatch, Paired
from contrast.negatives.prototypes import Prototypes
from contrast.negatives.queue import Nearest, Queue
from contrast.negatives.source import Source
from contrast.negatives.table import Table, Targets
from contrast.negatives.tree import Tree
from contrast.negatives.without_negatives import Dimensions, PositivesOnly

__all__ = [
    "Bank",
    "Dimensions",
    "InBatch",
    "Nearest",
    "Paired",
    "PositivesOnly",
    "Prototypes",
    "Queue",
    "Source",
    "Table",
    "Targets",
    "Tree",
]
