"""Encoders of texts, token ids [B, L] -> [B, F]. B texts, L tokens, F features, V token ids.

Every builder is called as `builder(vocabulary=V, length=L)`. Ids are int64. The id 0 is padding at any position, and a
text of nothing but padding has features of zero.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from contrast.encoders.contract import finish
from contrast.errors import InputError, named_errors, need
from contrast.network import look_for_the_hub

PADDING = 0


class TextTransformer(nn.Module):
    """A small transformer with random initial weights, [B, L] -> [B, width]; L of at most `length`, else InputError.

    vocabulary  number of token ids, V: `Tokenizer.size`
    length      number of positions that are learned
    The blocks are pre-norm (Xiong et al. 2020) with an MLP of 4 x width and GELU. A last norm follows, then the mean
    over the tokens that are not padding. More padding changes nothing. Embeddings and positions have no weight decay.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
        compile: bool = False,
    ) -> None:
        if min(vocabulary - 1, length, layers, heads) < 1 or width < 1 or width % heads:
            raise InputError(
                f"no text transformer has vocabulary={vocabulary} (2 or more), length={length}, layers={layers} (1 or "
                f"more) and width={width} divided among heads={heads}"
            )
        super().__init__()
        self.token = nn.Embedding(vocabulary, width, padding_idx=PADDING)
        self.position = nn.Parameter(torch.empty(length, width))
        self.layers = nn.ModuleList(  # nn.TransformerEncoder would copy one layer, so that all start with equal weights
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.token.weight[1:], std=0.02)  # both standard deviations: CLIP's code (Radford et al. 2021)
        nn.init.normal_(self.position, std=0.01)
        self.token.weight.no_decay = True  # type: ignore[attr-defined]
        self.position.no_decay = True  # type: ignore[attr-defined]
        finish(self, width, compile=compile)

    def forward(self, text: Tensor) -> Tensor:
        if text.shape[1] > len(self.position):
            raise InputError(f"the text encoder takes {len(self.position)} tokens, the texts have {text.shape[1]}")
        x = self.token(text) + self.position[: text.shape[1]]  # [B, L] -> [B, L, F]
        ignored = ~attention_mask(text)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=ignored)
        return mean_of_tokens(self.norm(x), text)


text_transformer = TextTransformer  # called as the other builders are


class HFText(nn.Module):
    """A model of transformers and the mean of its last hidden states over the tokens; `hf_text` builds it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        pad = getattr(net.config, "pad_token_id", None)
        self.pad = PADDING if pad is None else pad  # RoBERTa counts positions from the first token that is not this

    def forward(self, text: Tensor) -> Tensor:
        ids = torch.where(text == PADDING, self.pad, text - 1)  # HFTokenizer shifts the ids up by one
        out = self.net(input_ids=ids, attention_mask=attention_mask(text).long())
        return mean_of_tokens(out.last_hidden_state, text)


def hf_text(
    name: str,
    vocabulary: int | None,
    length: int | None,
    pretrained: bool = True,
    trust_remote_code: bool = False,
    compile: bool = False,
    frozen: bool = False,
    **options: object,
) -> HFText:
    """A `transformers.AutoModel` by name or folder, [B, L] -> [B, F]: `pip install 'contrast-learning[transformers]'`.

    name                of the model, or its folder
    vocabulary, length  of the tokenizer (`HFTokenizer(name)`) and of its texts; None: they are not checked
    pretrained          False: the same architecture with random weights
    trust_remote_code   True: run Python code that comes with the model. The default refuses it without asking
    frozen              the model does not learn: no gradient, and eval mode in training
    options             entries of the model's configuration to change: attention_dropout=0.1, ...
                        use_safetensors=False reads weights in the older format, too, which is a pickle
    The ids are those of HFTokenizer, which are shifted by one. The mean is over all tokens, special ones included, as
    in Sentence-BERT (Reimers and Gurevych 2019). Of a two-tower model (CLIP, SigLIP) the text tower is taken, of an
    encoder-decoder (T5) the encoder. Layers behind the hidden states (poolers) are removed, because they would have no
    gradient. Weights are float32. Embeddings have no weight decay.

    Raises InputError without transformers, for a model that cannot be loaded, and if the tokenizer has more tokens or
    the texts are longer than the model takes.
    """
    need("transformers", "transformers", f"the text encoder '{name}'")
    from transformers import AutoConfig, AutoModel

    if not Path(name).exists():
        look_for_the_hub()
    kinds = OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError
    with named_errors(kinds, f"transformers cannot build '{name}'"):
        if pretrained:
            options = {"use_safetensors": True, **options}  # the older format is a pickle
            net = AutoModel.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
        else:
            config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
            net = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    if getattr(net, "text_model", None) is not None:
        net = net.text_model
    elif net.config.is_encoder_decoder:
        net = net.get_encoder()
    for behind in ("pooler", "head"):
        if isinstance(getattr(net, behind, None), nn.Module):
            setattr(net, behind, nn.Identity())
    num_ids, positions = net.config.vocab_size, getattr(net.config, "max_position_embeddings", None)
    if vocabulary is not None and vocabulary > num_ids + 1:
        raise InputError(f"'{name}' knows {num_ids} tokens, the tokenizer has {vocabulary - 1}: take that of '{name}'")
    if length is not None and positions is not None and length > positions:
        raise InputError(f"'{name}' takes {positions} tokens, the texts have {length}: lower data.length")
    for part in net.modules():
        if isinstance(part, nn.Embedding):
            part.weight.no_decay = True  # type: ignore[attr-defined]
    return finish(HFText(net.float()), net.config.hidden_size, compile=compile, frozen=frozen)


def attention_mask(text: Tensor) -> Tensor:
    """Which tokens take part in attention, [B, L] bool: those that are not padding; all tokens of a text of padding.

    A softmax over no token at all would be 0 / 0.
    """
    kept = text != PADDING
    return kept | ~kept.any(dim=1, keepdim=True)


def mean_of_tokens(x: Tensor, text: Tensor) -> Tensor:
    """Mean of x [B, L, F] over the tokens of text [B, L] that are not padding, [B, F]; 0 for a text of padding."""
    weight = (text != PADDING).to(x.dtype).unsqueeze(2)  # [B, L, 1]
    return (x * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
