"""Geometry of an embedding: alignment, uniformity, effective rank.

N rows of D numbers. Half-precision input is computed in float32, whatever autocast says; float64 stays float64.
Each returns a scalar tensor on the input's device and does not wait for that device, except for the singular values of
the effective rank, where the CUDA library itself waits.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from contrast.errors import InputError


def alignment(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance of positive pairs, E ||x - y||^2, between 0 and 4. x, y [N, D], row by row.

    Wang and Isola 2020, section 4.1, with alpha = 2. Rows are brought to length 1 first; a row of zeros stays zero,
    so a collapsed embedding (all rows equal, or zero) gives 0. InputError where the shapes differ or N is 0.
    """
    if x.shape != y.shape or x.ndim != 2 or len(x) == 0:
        raise InputError(f"alignment: expected two equal shapes [N, D], got {list(x.shape)} and {list(y.shape)}")
    return (_unit(x) - _unit(y)).square().sum(dim=1).mean()


def uniformity(x: Tensor, t: float = 2.0, block: int = 1024) -> Tensor:
    """log of the mean of exp(-t ||x_i - x_j||^2) over the pairs i != j, between -4t and 0; lower is more uniform.

    Wang and Isola 2020, section 4.1. x [N, D], N at least 2. Rows are brought to length 1 first (zero stays zero), so
    a collapsed embedding gives 0. Computed over [block, N] tiles by log-sum-exp.
    """
    if x.ndim != 2 or len(x) < 2:
        raise InputError(f"uniformity: expected [N, D] with at least 2 rows, got {list(x.shape)}")
    x = _unit(x)
    n = len(x)
    parts = []
    with torch.autocast(x.device.type, enabled=False):
        norms = x.square().sum(dim=1)  # 1, or 0 for a row of zeros
        for start in range(0, n, block):
            rows = x[start : start + block]
            # ||a - b||^2 = ||a||^2 + ||b||^2 - 2 a b: [b, D] x [N, D] -> [b, N]
            squared = norms[start : start + block, None] + norms - 2 * rows @ x.T
            exponent = -t * squared.clamp(min=0)
            row = torch.arange(start, start + len(rows), device=x.device)[:, None]
            exponent = exponent.masked_fill(row == torch.arange(n, device=x.device), -math.inf)
            parts.append(exponent.logsumexp(dim=1))
    return torch.cat(parts).logsumexp(dim=0) - math.log(n) - math.log(n - 1)


def effective_rank(x: Tensor) -> Tensor:
    """exp of the entropy of the singular values of x [N, D], between 1 and min(N, D); 0 for a matrix of zeros.

    Roy and Vetterli 2007, definition 1; RankMe (Garrido et al. 2023, eq. 1) is this on raw, uncentred embeddings. It is
    1 if all rows are equal, and NaN if any number is not finite. InputError unless x is [N, D] and not empty.
    """
    if x.ndim != 2 or x.numel() == 0:
        raise InputError(f"effective_rank: expected [N, D], got {list(x.shape)}")
    with torch.autocast(x.device.type, enabled=False):
        finite = x.isfinite().all()  # LAPACK would raise
        values = torch.linalg.svdvals(torch.where(finite, _wide(x), 0))  # [min(N, D)]
    total = values.sum()
    p = values / torch.where(total > 0, total, 1)
    rank = torch.special.entr(p).sum().exp() * (total > 0)  # entr(p) = -p log p, 0 at 0
    return torch.where(finite, rank, torch.nan)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _unit(x: Tensor) -> Tensor:
    return F.normalize(_wide(x), dim=1)
