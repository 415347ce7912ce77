"""Text encoders, token ids [B, L] -> [B, F]. B texts, L tokens, F features, V token ids.

Every builder is called as `builder(vocabulary=V, length=L)` and returns an `nn.Module` with the attribute
`num_features`. Ids are int64, 0 is padding wherever it stands; a text of nothing but padding gives zeros.
"""

from typing import Any

import torch
from torch import Tensor, nn

from contrast.encoders.contract import finish
from contrast.errors import InputError

PADDING = 0


class TextTransformer(nn.Module):
    """Pre-norm transformer with learned positions and the mean over the tokens; `text_transformer` builds it."""

    def __init__(self, vocabulary: int, length: int, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width, padding_idx=PADDING)
        self.position = nn.Parameter(torch.empty(length, width))
        self.layers = nn.ModuleList(  # nn.TransformerEncoder would start all layers with the same weights
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.token.weight[1:], std=0.02)  # the two of CLIP (Radford et al. 2021, released code)
        nn.init.normal_(self.position, std=0.01)
        self.token.weight.no_decay = True  # type: ignore[attr-defined]
        self.position.no_decay = True  # type: ignore[attr-defined]

    def forward(self, text: Tensor) -> Tensor:
        if text.shape[1] > len(self.position):
            raise InputError(f"the text encoder takes {len(self.position)} tokens, the texts have {text.shape[1]}")
        x = self.token(text) + self.position[: text.shape[1]]  # [B, L] -> [B, L, F]
        ignored = ~attended(text)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=ignored)
        return mean_of_tokens(self.norm(x), text)


def text_transformer(
    vocabulary: int,
    length: int,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    dropout: float = 0.0,
    compile: bool = False,
) -> TextTransformer:
    """A small transformer trained from nothing, [B, L] -> [B, width]; L of at most `length`, else InputError.

    vocabulary  ids lie in 0..vocabulary - 1: `Tokenizer.size`
    length      positions that are learned
    Pre-norm blocks (Xiong et al. 2020) with an MLP of 4 x width and GELU, a last norm, then the mean over the tokens
    that are not padding. Adding padding changes nothing. Embeddings and positions do not decay.
    """
    if min(vocabulary - 1, length, layers, heads) < 1 or width < 1 or width % heads:
        raise InputError(
            f"no text transformer has vocabulary={vocabulary} (2 or more), length={length}, layers={layers} (1 or "
            f"more) and width={width} divided among heads={heads}"
        )
    return finish(TextTransformer(vocabulary, length, width, layers, heads, dropout), width, compile=compile)


class HFText(nn.Module):
    """A model of transformers and the mean of its last hidden states over the tokens; `hf_text` builds it."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        pad = getattr(net.config, "pad_token_id", None)
        self.pad = pad if pad is not None else 0  # RoBERTa counts positions by it

    def forward(self, text: Tensor) -> Tensor:
        ids = torch.where(text == PADDING, self.pad, text - 1)  # HFTokenizer shifts ids up by one
        out = self.net(input_ids=ids, attention_mask=attended(text).long())
        return mean_of_tokens(out.last_hidden_state, text)


def hf_text(
    name: str,
    vocabulary: int | None = None,
    length: int | None = None,
    pretrained: bool = True,
    compile: bool = False,
    **options: Any,
) -> HFText:
    """Any `transformers.AutoModel` by name or local folder, [B, L] -> [B, F]: `pip install 'contrast[transformers]'`.

    vocabulary, length  of the tokenizer (`HFTokenizer(name)`) and its texts, to see that they fit; None: not seen to
    pretrained          False: its architecture with random weights
    options             entries of its configuration to change: attention_dropout=0.1, ...
    Text is that of HFTokenizer, whose ids are shifted by one. The mean is over all tokens, special ones included, as in
    Sentence-BERT (Reimers and Gurevych 2019). Of a two-tower model (CLIP, SigLIP) it is the text tower, of an
    encoder-decoder (T5) the encoder; layers behind the hidden states (poolers) are taken off, as they would get no
    gradient. Weights are float32. Embeddings do not decay.

    Raises InputError without transformers, for a name it cannot load, and for a tokenizer or length too large.
    """
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise InputError(
            f"the text encoder '{name}' needs transformers: pip install 'contrast[transformers]'"
        ) from error
    try:
        if pretrained:
            net: Any = AutoModel.from_pretrained(name, **options)
        else:
            net = AutoModel.from_config(AutoConfig.from_pretrained(name, **options))
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
        raise InputError(f"transformers cannot build '{name}': {' '.join(str(error).split())}") from error
    if getattr(net, "text_model", None) is not None:
        net = net.text_model
    elif net.config.is_encoder_decoder:
        net = net.get_encoder()
    for behind in ("pooler", "head"):
        if isinstance(getattr(net, behind, None), nn.Module):
            setattr(net, behind, nn.Identity())
    known, positions = net.config.vocab_size, getattr(net.config, "max_position_embeddings", None)
    if vocabulary is not None and vocabulary > known + 1:
        raise InputError(f"'{name}' knows {known} tokens, the tokenizer has {vocabulary - 1}: take that of '{name}'")
    if length is not None and positions is not None and length > positions:
        raise InputError(f"'{name}' takes {positions} tokens, the texts have {length}: lower data.length")
    for part in net.modules():
        if isinstance(part, nn.Embedding):
            part.weight.no_decay = True  # type: ignore[attr-defined]
    return finish(HFText(net.float()), net.config.hidden_size, compile=compile)


def attended(text: Tensor) -> Tensor:
    """Which tokens may be attended to, [B, L] bool: not padding; all where there is nothing else, lest 0/0."""
    kept = text != PADDING
    return kept | ~kept.any(dim=1, keepdim=True)


def mean_of_tokens(x: Tensor, text: Tensor) -> Tensor:
    """Mean of x [B, L, F] over the tokens of text [B, L] that are not padding, [B, F]; 0 where there are none."""
    weight = (text != PADDING).to(x.dtype).unsqueeze(2)  # [B, L, 1]
    return (x * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
