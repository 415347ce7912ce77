"""Heads score queries against candidates and turn the scores into one loss per query."""

from contrast.heads.info_nce import InfoNCE
from contrast.heads.softmax import softmax_loss
from contrast.heads.temperature import Cosine, Fixed, Learnable, Temperature

__all__ = ["Cosine", "Fixed", "InfoNCE", "Learnable", "Temperature", "softmax_loss"]
