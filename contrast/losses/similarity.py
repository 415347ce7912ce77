"""Scores of queries against candidates, in float32 whatever autocast says (float64 stays float64).

B queries, C candidates, D dimensions.
"""

import torch
from torch import Tensor

from contrast.errors import InputError


def unit(vectors: Tensor) -> Tensor:
    """Vectors [..., D] divided by their length; a zero vector stays zero and gets a finite gradient."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)  # [..., 1]
    return vectors / torch.where(length > 0, length, 1)


def similarity(query: Tensor, candidates: Tensor, cosine: bool = True) -> Tensor:
    """Cosine or dot products, [B, D] x [C, D] or [B, C, D] -> [B, C], in float32 (half inputs are raised to it)."""
    if query.shape[-1] != candidates.shape[-1]:
        raise InputError(f"queries have {query.shape[-1]} dimensions, candidates {candidates.shape[-1]}")
    with torch.autocast(query.device.type, enabled=False):
        query, candidates = at_least_float32(query), at_least_float32(candidates)
        if cosine:
            query, candidates = unit(query), unit(candidates)
        if candidates.ndim == 2:
            return query @ candidates.T  # [B, D] x [C, D] -> [B, C]
        return (candidates @ query[:, :, None]).squeeze(2)  # [B, C, D] x [B, D, 1] -> [B, C]


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float64 stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
