"""Any model of timm by name, an extra: `pip install contrast[timm]`."""

from typing import Any

from torch import nn

from contrast.encoders.contract import check_name, finish
from contrast.errors import InputError


def timm_model(
    name: str,
    in_channels: int = 3,
    image_size: int = 32,
    channels_last: bool = False,
    compile: bool = False,
    **options: Any,
) -> nn.Module:
    """`timm.create_model` without a classifier, [B, in_channels, S, S] -> [B, F].

    image_size  S, handed on where the architecture is built for one size (ViT, Swin, MLP-Mixer)
    options     of `timm.create_model`: pretrained, patch_size, drop_path_rate, ...
    Raises InputError without timm, for an unknown name and for options that the model does not take.
    """
    try:
        import timm
    except ImportError as error:
        raise InputError(f"the encoder '{name}' needs timm: pip install 'contrast[timm]'") from error
    architecture = name.partition(".")[0]  # vit_small_patch16_224.dino: an architecture and the tag of its weights
    check_name(architecture, timm.list_models(), "model of timm")
    published = timm.get_pretrained_cfg(architecture)
    if published is not None and published.fixed_input_size:
        options = {"img_size": image_size, **options}
    try:
        net: Any = timm.create_model(name, num_classes=0, in_chans=in_channels, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        raise InputError(f"timm cannot build '{name}' with {given or 'its defaults'}: {error}") from error
    unweighted = net.no_weight_decay() if hasattr(net, "no_weight_decay") else ()
    for key, parameter in net.named_parameters():
        if key in unweighted:
            parameter.no_decay = True
    # some nets (MobileNetV3, VGG) keep a wider layer before the classifier they no longer have
    num_features = getattr(net, "head_hidden_size", None) or net.num_features
    return finish(net, num_features, channels_last, compile)
