"""Sources of negatives: calling one reads, its `update` alone writes."""

from contrast.negatives.in_batch import InBatch

__all__ = ["InBatch"]
