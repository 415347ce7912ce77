"""The two towers of a model of open_clip: `pip install 'contrast-learning[open-clip]'`.

B images or texts, S pixels a side, L tokens, D dimensions of the space that both towers share.
"""

from typing import Protocol

from torch import Tensor, nn

from contrast.encoders.contract import check_name, finish
from contrast.encoders.pretrained import downloading
from contrast.errors import InputError, need


class _Model(Protocol):
    """A model of open_clip, as far as it matters here."""

    visual: nn.Module
    context_length: int

    def encode_text(self, text: Tensor) -> Tensor: ...


def open_clip_image(
    name: str,
    in_channels: int = 3,
    image_size: int = 224,
    pretrained: str | None = None,
    channels_last: bool = False,
    compile: bool = False,
    weights: str | None = None,
    prefix: str | None = None,
    frozen: bool = False,
) -> nn.Module:
    """The tower of images, [B, 3, S, S] -> [B, D].

    name        of open_clip: ViT-B-32, ViT-B-16-SigLIP, ...
    pretrained  the tag of its weights: laion2b_s34b_b79k, ...; None: random weights
    image_size  S; position embeddings are interpolated
    Pixels are normalised as the model expects. Raises InputError without open_clip, for an unknown name or tag, and for
    other than 3 channels.
    """
    if in_channels != 3:
        raise InputError(f"open_clip's '{name}' takes 3 channels, not {in_channels}: data.channels=3")
    model, dim = _model(name, pretrained, image_size)
    net = model.visual
    net.pixel_statistics = net.image_mean, net.image_std  # type: ignore[assignment]
    return finish(net, dim, channels_last, compile, weights, prefix, frozen)


class TextTower(nn.Module):
    """The part of a model of open_clip that embeds texts, [B, L] -> [B, D]."""

    def __init__(self, model: _Model) -> None:
        super().__init__()
        self.model = model
        model.visual = nn.Identity()
        for unused in ("logit_scale", "logit_bias"):  # a parameter without a gradient, which DDP would wait for
            setattr(model, unused, None)

    def forward(self, text: Tensor) -> Tensor:
        return self.model.encode_text(text)


def open_clip_text(
    name: str,
    vocabulary: int | None,
    length: int | None,
    pretrained: str | None = None,
    compile: bool = False,
    frozen: bool = False,
) -> nn.Module:
    """The tower of texts, token ids of `OpenClipTokenizer` [B, L] -> [B, D]; `name`, `pretrained` as for the images.

    Raises InputError without open_clip, for an unknown name or tag, another tokenizer, and another L than the model's.
    """
    model, dim = _model(name, pretrained)
    tower, size = TextTower(model), getattr(model, "vocab_size", None)
    if length is not None and length != model.context_length:
        raise InputError(f"'{name}' takes texts of {model.context_length} tokens, not {length}: set data.length")
    if None not in (size, vocabulary) and size != vocabulary:
        raise InputError(
            f"'{name}' knows {size} tokens, the tokenizer has {vocabulary}: data.tokenizer=open_clip:{name}"
        )
    return finish(tower, dim, compile=compile, frozen=frozen)


def _model(name: str, pretrained: str | None, image_size: int | None = None) -> tuple[_Model, int]:
    """A model of open_clip and its D. Only the architectures that come with open_clip, not those of other places."""
    need("open_clip", "open-clip", f"'{name}'")
    import open_clip

    check_name(name, open_clip.list_models(), "model of open_clip")
    with downloading(f"open_clip:{name} {pretrained or ''}"):
        model = open_clip.create_model(name, pretrained=pretrained or None, force_image_size=image_size)
    for key, parameter in model.named_parameters():
        if key.endswith(("embedding", "token_embedding.weight")):  # of classes, positions and tokens
            parameter.no_decay = True
    return model, open_clip.get_model_config(name)["embed_dim"]
