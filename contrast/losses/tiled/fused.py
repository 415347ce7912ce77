"""The losses by fused Triton kernels on a GPU, for candidates that the kernels can score (`triton.can_run`).

B queries, C candidates.
"""

import torch
from torch import Tensor

from contrast.candidates import Candidates
from contrast.losses.plan import Scoring
from contrast.losses.tiled.triton import KernelArgs, LogisticSums, SoftmaxStatistics


def fused_statistics(
    query: Tensor, candidates: Candidates, scoring: Scoring, hardness: float = 0.0
) -> tuple[Tensor, ...]:
    """The first five of `contrast.losses.softmax.Statistics`, of the shared candidates."""
    with torch.autocast(query.device.type, enabled=False):
        args = _arguments(query, candidates, scoring)
        if candidates.symmetric and args.offset is None:
            vectors = None if candidates.vectors is query else candidates.vectors.detach()
            args = args._replace(both=True, vectors=vectors)
        return SoftmaxStatistics.apply(*args, hardness)


def fused_logistic(query: Tensor, candidates: Candidates, scoring: Scoring, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of softplus(s + bias) over the negatives and softplus(-s - bias) over the positives, [B]; positives [B]."""
    with torch.autocast(query.device.type, enabled=False):
        args = _arguments(query, candidates, scoring)
        bias = bias.float()
        offset = bias.expand(len(candidates)) if args.offset is None else args.offset + bias
        return LogisticSums.apply(*args._replace(offset=offset))


def _arguments(query: Tensor, candidates: Candidates, scoring: Scoring) -> KernelArgs:
    vectors, offset = candidates.vectors, None
    if query.dtype != vectors.dtype:  # a queue in float32 under autocast
        dtype = torch.promote_types(query.dtype, vectors.dtype)
        query, vectors = query.to(dtype), vectors.to(dtype)
    if scoring.correction and candidates.log_q is not None:
        offset = -candidates.log_q.float()
    scale = 1 / scoring.temperature.to(query.device, torch.float32)
    return KernelArgs(query, vectors, scale, offset, scoring.cosine, candidates)
