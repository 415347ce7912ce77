"""torchvision's ResNets and vision transformers by name, without their classifier."""

from typing import Literal

from torch import nn
from torchvision import models
from torchvision.models.resnet import ResNet
from torchvision.models.vision_transformer import VisionTransformer

from contrast.encoders.contract import check_name, finish
from contrast.errors import InputError

RESNETS = [name for name in models.list_models() if models.get_model_builder(name).__module__ == ResNet.__module__]

# layers, heads, hidden width, width of the MLP: Dosovitskiy et al. 2021, table 1; ti and s of Touvron et al. 2021
VIT_SIZES = {
    "vit_ti": (12, 3, 192, 768),
    "vit_s": (12, 6, 384, 1536),
    "vit_b": (12, 12, 768, 3072),
    "vit_l": (24, 16, 1024, 4096),
    "vit_h": (32, 16, 1280, 5120),
}


def resnet(
    name: str = "resnet18",
    in_channels: int = 3,
    image_size: int = 32,
    stem: Literal["cifar", "imagenet"] = "cifar",
    zero_init_residual: bool = True,
    channels_last: bool = False,
    compile: bool = False,
) -> ResNet:
    """A torchvision ResNet (resnet18 ... resnet152, resnext*, wide_resnet*), [B, in_channels, H, W] -> [B, F].

    stem                imagenet: 7 x 7 convolution of stride 2 and max pooling (He et al. 2016);
                        cifar: 3 x 3 of stride 1, no pooling, for small images (Chen et al. 2020, B.9)
    zero_init_residual  the last gamma of every residual block starts at 0 (Goyal et al. 2017, 5.1)
    image_size          is taken for the uniform call: a ResNet fits every size
    """
    check_name(name, RESNETS, "ResNet of torchvision")
    net = models.get_model(name, weights=None, zero_init_residual=zero_init_residual)
    num_features = net.fc.in_features
    net.fc = nn.Identity()
    if stem == "cifar":
        net.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
    elif stem == "imagenet":
        net.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    else:
        raise InputError(f"a stem is cifar or imagenet, not '{stem}'")
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return finish(net, num_features, channels_last, compile)


def vit(
    name: str = "vit_ti",
    in_channels: int = 3,
    image_size: int = 32,
    patch_size: int | None = None,
    dropout: float = 0.0,
    channels_last: bool = False,
    compile: bool = False,
) -> VisionTransformer:
    """torchvision's vision transformer, the output of the class token: [B, in_channels, S, S] -> [B, F].

    name        vit_ti, vit_s, vit_b, vit_l, vit_h; with the patch after it (vit_b_16) it sets `patch_size` too
    image_size  S, the only size it takes; `patch_size` must divide it, else InputError
    """
    size, _, patch = name.rpartition("_") if name.count("_") == 2 else (name, "", "")
    check_name(size, VIT_SIZES, "ViT")
    if patch and not patch.isdecimal():
        raise InputError(f"'{name}' ends in '{patch}', which is no size of a patch; an example: {size}_16")
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
    return finish(net, hidden, channels_last, compile)
