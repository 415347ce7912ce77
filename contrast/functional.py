"""The losses as plain functions, for a training loop of your own. They are written in `contrast.losses.functions`.

from contrast.functional import nt_xent
loss = nt_xent(projector(encoder(one)), projector(encoder(other)), temperature=0.2)
loss.backward()
"""

from contrast.losses.functions import (
    clip_loss,
    dcl,
    info_nce,
    nce,
    negative_sampling,
    nt_xent,
    sampled_softmax,
    siglip_loss,
    sup_con,
)

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
