"""Encoders, images [B, C, H, W] or texts [B, L] -> [B, num_features], and the projection head behind them.

A builder of an encoder is called as `builder(in_channels=C, image_size=S)`, one of a text encoder as
`builder(vocabulary=V, length=L)`. It returns any `nn.Module` that keeps to `Encoder`.
"""

from contrast.encoders.contract import Encoder, finish
from contrast.encoders.pretrained import pretrained
from contrast.encoders.projector import mlp, predictor
from contrast.encoders.subwords import SubwordTable
from contrast.encoders.text import hf_text, text_transformer
from contrast.encoders.towers import open_clip_image, open_clip_text
from contrast.encoders.vision import conv_net, resnet, timm_model, vit
from contrast.encoders.weights import load_encoder
from contrast.encoders.words import GRU, WordTable

__all__ = [
    "GRU",
    "Encoder",
    "SubwordTable",
    "WordTable",
    "conv_net",
    "finish",
    "hf_text",
    "load_encoder",
    "mlp",
    "open_clip_image",
    "open_clip_text",
    "predictor",
    "pretrained",
    "resnet",
    "text_transformer",
    "timm_model",
    "vit",
]
