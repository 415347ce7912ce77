"""The losses as plain functions, for a training loop of your own.

from contrast.functional import nt_xent
loss = nt_xent(projector(encoder(one)), projector(encoder(other)), temperature=0.2)
loss.backward()
"""

from contrast.losses.functions import clip_loss, dcl, info_nce, nt_xent, siglip_loss, sup_con
from contrast.losses.sampled import nce, negative_sampling, sampled_softmax

__all__ = [
    "clip_loss",
    "dcl",
    "info_nce",
    "nce",
    "negative_sampling",
    "nt_xent",
    "sampled_softmax",
    "siglip_loss",
    "sup_con",
]
