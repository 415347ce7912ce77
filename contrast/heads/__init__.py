"""Heads score queries against candidates and turn the scores into one loss per query."""

from contrast.heads.adaptive_softmax import AdaptiveSoftmax
from contrast.heads.head import Head
from contrast.heads.info_nce import InfoNCE
from contrast.heads.margin import ArcFace, CosFace, LSoftmax
from contrast.heads.nce import NCE
from contrast.heads.scalars import (
    Bias,
    Cosine,
    Estimated,
    Fixed,
    FixedBias,
    Learnable,
    LearnedBias,
    Temperature,
)
from contrast.heads.without_negatives import Alignment, Covariance, CrossCorrelation
from contrast.losses.logistic import logistic_loss
from contrast.losses.scores import Scores
from contrast.losses.softmax import softmax_loss

__all__ = [
    "NCE",
    "AdaptiveSoftmax",
    "Alignment",
    "ArcFace",
    "Bias",
    "CosFace",
    "Cosine",
    "Covariance",
    "CrossCorrelation",
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
