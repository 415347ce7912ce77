"""Encoders of images: a small convolutional net, torchvision's ResNets and vision transformers, and timm's models.

Every builder is called as `builder(in_channels=C, image_size=S)`. The classifier is left out. `weights` and `prefix`
say which weights the encoder starts from, as `contrast.encoders.pretrained` explains; with `frozen` it keeps them.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from torch import nn
from torchvision import models
from torchvision.models.resnet import ResNet
from torchvision.models.vision_transformer import VisionTransformer

from contrast.encoders.contract import check_name, finish, size_error
from contrast.errors import InputError, need, one_line
from contrast.network import look_for_the_hub

log = logging.getLogger(__name__)

RESNETS = [name for name in models.list_models() if models.get_model_builder(name).__module__ == ResNet.__module__]

SMALL = 64  # pixels; larger images are no small images
# layers, heads, hidden width, width of the MLP: Dosovitskiy et al. 2021, table 1; ti and s of Touvron et al. 2021
VIT_SIZES = {
    "vit_ti": (12, 3, 192, 768),
    "vit_s": (12, 6, 384, 1536),
    "vit_b": (12, 12, 768, 3072),
    "vit_l": (24, 16, 1024, 4096),
    "vit_h": (32, 16, 1280, 5120),
}


def conv_net(
    in_channels: int = 3,
    image_size: int = 32,
    widths: Sequence[int] = (64, 128, 256),
    channels_last: bool = False,
    compile: bool = False,
    weights: str | None = None,
    prefix: str | None = None,
    frozen: bool = False,
) -> nn.Sequential:
    """A small net for images of 8 x 8 to 32 x 32 pixels, fast on a CPU: [B, in_channels, H, W] -> [B, widths[-1]].

    widths  channels of the blocks
    Each width is a block of convolution, 2 x 2 max pooling, batch norm and ReLU. The last block has no pooling and ends
    in the mean over all positions. H and W have to be at least 2^(len(widths) - 1), or InputError is raised.
    """
    if not widths:
        raise InputError("a convolutional net needs the width of one block at least, widths is empty")
    smallest = 2 ** (len(widths) - 1)
    if image_size < smallest:
        raise InputError(f"{len(widths)} blocks need images of {smallest} pixels or more, these have {image_size}")
    if image_size > SMALL:
        log.warning(
            "encoder=small is a net for images of 8 to 32 pixels, and these have %d: encoder=resnet18 fits them",
            image_size,
        )
    net = nn.Sequential()
    for k, width in enumerate(widths):
        net.append(nn.Conv2d(in_channels if k == 0 else widths[k - 1], width, 3, padding=1, bias=False))
        if k < len(widths) - 1:
            net.append(nn.MaxPool2d(2))  # before norm and ReLU, which then process a quarter of the pixels
        net.extend((nn.BatchNorm2d(width), nn.ReLU(inplace=True)))
    net.extend((nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    return finish(net, widths[-1], channels_last, compile, weights, prefix, frozen)


def resnet(
    name: str = "resnet18",
    in_channels: int = 3,
    image_size: int = 32,
    stem: Literal["auto", "cifar", "imagenet"] = "auto",
    zero_init_residual: bool = True,
    channels_last: bool = False,
    compile: bool = False,
    weights: str | None = None,
    prefix: str | None = None,
    frozen: bool = False,
) -> ResNet:
    """A torchvision ResNet (resnet18 ... resnet152, resnext*, wide_resnet*), [B, in_channels, H, W] -> [B, F].

    name                of torchvision's model
    stem                imagenet: 7 x 7 convolution of stride 2 and max pooling (He et al. 2016);
                        cifar: 3 x 3 of stride 1, no pooling, for small images (Chen et al. 2020, B.9);
                        auto: cifar for images of at most 64 pixels, imagenet for larger ones
    zero_init_residual  the last gamma of every residual block starts at 0 (Goyal et al. 2017, 5.1)
    image_size          chooses the stem; a ResNet accepts every size
    """
    check_name(name, RESNETS, "ResNet of torchvision")
    net = models.get_model(name, weights=None, zero_init_residual=zero_init_residual)
    num_features = net.fc.in_features
    net.fc = nn.Identity()
    if stem == "auto":
        stem = "cifar" if image_size <= SMALL else "imagenet"
    if stem == "cifar":
        net.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
    elif stem == "imagenet":
        net.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    else:
        raise InputError(f"a stem is auto, cifar or imagenet, not '{stem}'")
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return finish(net, num_features, channels_last, compile, weights, prefix, frozen)


def vit(
    name: str = "vit_ti",
    in_channels: int = 3,
    image_size: int = 32,
    patch_size: int | None = None,
    dropout: float = 0.0,
    channels_last: bool = False,
    compile: bool = False,
    weights: str | None = None,
    prefix: str | None = None,
    frozen: bool = False,
) -> VisionTransformer:
    """torchvision's vision transformer, the output of the class token: [B, in_channels, S, S] -> [B, F].

    name        vit_ti, vit_s, vit_b, vit_l, vit_h; with the patch size after it (vit_b_16) it sets `patch_size` too
    image_size  S, the only size it accepts; `patch_size` must divide it, else InputError. For views of several sizes
                (multi-crop) take a ViT of timm, which interpolates its position embeddings: `timm_model`
    patch_size  pixels a side of a patch
    dropout     probability of dropout in the MLPs and after the embedding
    """
    size, _, patch = name.rpartition("_") if name.count("_") == 2 else (name, "", "")
    check_name(size, VIT_SIZES, "ViT")
    if patch and not patch.isdecimal():
        raise InputError(f"'{name}' ends in '{patch}', which is not a patch size; an example: {size}_16")
    patch_size = patch_size or int(patch or 0)
    if patch_size <= 0 or image_size % patch_size:
        raise InputError(f"patches of {patch_size} pixels do not tile images of {image_size}: set patch_size")
    layers, heads, hidden, mlp = VIT_SIZES[size]
    net = VisionTransformer(image_size, patch_size, layers, heads, hidden, mlp, dropout)
    net.heads = nn.Identity()
    if in_channels != 3:
        net.conv_proj = nn.Conv2d(in_channels, hidden, patch_size, patch_size)
        std = (in_channels * patch_size**2) ** -0.5
        nn.init.trunc_normal_(net.conv_proj.weight, std=std)
        nn.init.zeros_(net.conv_proj.bias)
    net.class_token.no_decay = True
    net.encoder.pos_embedding.no_decay = True
    return finish(net, hidden, channels_last, compile, weights, prefix, frozen)


def timm_model(
    name: str,
    in_channels: int = 3,
    image_size: int = 32,
    channels_last: bool = False,
    compile: bool = False,
    weights: str | None = None,
    prefix: str | None = None,
    frozen: bool = False,
    **options: Any,
) -> nn.Module:
    """Any model of timm by name, [B, in_channels, S, S] -> [B, F]: `pip install 'contrast-learning[timm]'`.

    name        of timm's model, with the tag of its weights or without
    image_size  S, given to architectures that are built for one size (ViT, Swin, MLP-Mixer). Those that can interpolate
                their position embeddings (ViT, DeiT, EVA, Swin) accept other sizes as well: `dynamic_img_size` is on
    options     of `timm.create_model`: pretrained, patch_size, drop_path_rate, ...
    Raises InputError without timm, for an unknown name, for options that the model does not take, and for a size that
    it does not accept.
    """
    need("timm", "timm", f"the encoder '{name}'")
    import timm

    architecture = name.partition(".")[0]  # vit_small_patch16_224.dino: an architecture and the tag of its weights
    check_name(architecture, timm.list_models(), "model of timm")
    published = timm.get_pretrained_cfg(architecture)
    if published is not None and published.fixed_input_size:
        options = {"img_size": image_size, "dynamic_img_size": True, **options}
    if options.get("pretrained"):
        look_for_the_hub()
    create = partial(timm.create_model, name, num_classes=0, in_chans=in_channels)
    try:
        try:
            net: Any = create(**options)
        except TypeError:  # an architecture that cannot interpolate, or an option that it does not have
            options.pop("dynamic_img_size", None)
            net = create(**options)
    except Exception as error:  # an option that does not fit, or whatever the library of a download raises
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        why = one_line(error)
        raise InputError(f"timm cannot build '{name}' with {given or 'its defaults'}: {why}") from error
    reason = size_error(net, in_channels, image_size)
    if reason:
        raise InputError(f"timm's '{name}' does not accept images of {image_size} pixels: {reason}")
    if options.get("pretrained"):
        net.pixel_statistics = net.pretrained_cfg["mean"], net.pretrained_cfg["std"]
    unweighted = net.no_weight_decay() if hasattr(net, "no_weight_decay") else ()
    for key, parameter in net.named_parameters():
        if key in unweighted:
            parameter.no_decay = True
    # some nets (MobileNetV3, VGG) keep a wider layer before the classifier they no longer have
    num_features = getattr(net, "head_hidden_size", None) or net.num_features
    return finish(net, num_features, channels_last, compile, weights, prefix, frozen)
