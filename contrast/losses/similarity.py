"""Similarities of queries and candidates, in float32 whatever autocast says (float64 stays float64).

B queries, C candidates, D dimensions.
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from contrast.errors import InputError


def unit(vectors: Tensor) -> Tensor:
    """Vectors [..., D] divided by their length. A zero vector stays zero and gets a finite gradient."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)  # [..., 1]
    return vectors / (length + (length == 0))  # torch.where has three nodes more in its backward pass


def similarity(query: Tensor, candidates: Tensor, cosine: bool = True) -> Tensor:
    """Cosine or dot products, [B, D] x [C, D] or [B, C, D] -> [B, C], in the precision of `same_precision`."""
    device = query.device.type
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
        same = candidates is query
        query, candidates = same_precision(query, candidates)
        if cosine:
            query = unit(query)
            candidates = query if same else unit(candidates)
        if candidates.ndim == 2:
            return query @ candidates.T  # [B, D] x [C, D] -> [B, C]
        return (candidates @ query[:, :, None]).squeeze(2)  # [B, C, D] x [B, D, 1] -> [B, C]


def same_precision(query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype: float32, or float64 where one of them is float64. InputError if their dimensions differ."""
    if query.shape[-1] != candidates.shape[-1]:
        raise InputError(f"queries have {query.shape[-1]} dimensions, candidates {candidates.shape[-1]}")
    if query.dtype == candidates.dtype and query.dtype in (torch.float32, torch.float64):
        return query, candidates
    dtype = torch.promote_types(torch.promote_types(query.dtype, candidates.dtype), torch.float32)
    return query.to(dtype), candidates.to(dtype)


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; float64 stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def with_margin(margin: nn.Module, cosine: bool, values: Tensor, query: Tensor, vectors: Tensor) -> Tensor:
    """Similarities after the margin, as of positives. A dot product is |q| |c| cos, and its cosine bears the margin.

    query, vectors  [..., D], whose similarities the values [...] are
    """
    if cosine:
        return margin(values)
    query, vectors = query.to(values.dtype), vectors.to(values.dtype)
    lengths = torch.linalg.vector_norm(query, dim=-1) * torch.linalg.vector_norm(vectors, dim=-1)  # [...]
    return lengths * margin(values / torch.where(lengths > 0, lengths, 1))
