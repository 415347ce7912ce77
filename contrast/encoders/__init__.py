"""Encoders, images [B, C, H, W] or texts [B, L] -> [B, num_features], and the projector behind them.

Every builder is called as `builder(in_channels=C, image_size=S)`, one of texts as `builder(vocabulary=V, length=L)`,
and returns an `nn.Module` with the attribute `num_features`. It may be any module with that attribute: nothing here
has to be subclassed.
"""

from contrast.encoders.projector import mlp, predictor
from contrast.encoders.recurrent import GRU
from contrast.encoders.small import conv_net
from contrast.encoders.text import hf_text, text_transformer
from contrast.encoders.timm_models import timm_model
from contrast.encoders.vision import resnet, vit
from contrast.encoders.weights import load_encoder
from contrast.encoders.words import WordTable

__all__ = [
    "GRU",
    "WordTable",
    "conv_net",
    "hf_text",
    "load_encoder",
    "mlp",
    "predictor",
    "resnet",
    "text_transformer",
    "timm_model",
    "vit",
]
