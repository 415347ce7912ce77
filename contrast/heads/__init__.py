"""Heads score queries against candidates and turn the scores into one loss per query."""

from contrast.heads.adaptive import AdaptiveSoftmax
from contrast.heads.bias import Bias, Estimated, FixedBias, LearnedBias
from contrast.heads.head import Head, Scores
from contrast.heads.info_nce import InfoNCE
from contrast.heads.logistic import logistic_loss
from contrast.heads.margin import ArcFace, CosFace, LSoftmax
from contrast.heads.nce import NCE
from contrast.heads.softmax import softmax_loss
from contrast.heads.temperature import Cosine, Fixed, Learnable, Temperature

__all__ = [
    "NCE",
    "AdaptiveSoftmax",
    "ArcFace",
    "Bias",
    "CosFace",
    "Cosine",
    "Estimated",
    "Fixed",
    "FixedBias",
    "Head",
    "InfoNCE",
    "LSoftmax",
    "Learnable",
    "LearnedBias",
    "Scores",
    "Temperature",
    "logistic_loss",
    "softmax_loss",
]
