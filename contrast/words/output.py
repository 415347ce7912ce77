"""Output layers over words: which source and head are one together."""

from typing import Any

from contrast.errors import InputError
from contrast.heads import NCE, AdaptiveSoftmax, FixedBias, InfoNCE
from contrast.negatives import Table, Targets, Tree


def check_pair(negatives: Any, head: Any) -> None:
    """InputError unless the source and the head are an output layer together."""
    plain = isinstance(head, NCE) and type(head.bias) is FixedBias and float(head.bias()) == 0
    fits = {
        Table: isinstance(head, InfoNCE | NCE) and head.margin is None,
        Tree: plain and head.num_noise is None and head.margin is None,
        Targets: isinstance(head, AdaptiveSoftmax),
    }
    ok = next((fits[kind] for kind in fits if isinstance(negatives, kind)), False)
    if not ok:
        raise InputError(
            f"{type(negatives).__name__} under {type(head).__name__} is no output layer: a Table goes with InfoNCE or "
            "NCE without a margin, a Tree with NCE without margin, bias and noise, Targets with AdaptiveSoftmax"
        )
