"""A small convolutional net for images of 8 x 8 to 32 x 32 pixels: fast on a CPU, the default on digits."""

from collections.abc import Sequence

from torch import nn

from contrast.encoders.contract import finish
from contrast.errors import InputError


def conv_net(
    in_channels: int = 3,
    image_size: int = 32,
    widths: Sequence[int] = (64, 128, 256),
    channels_last: bool = False,
    compile: bool = False,
) -> nn.Sequential:
    """One block of convolution, 2 x 2 max pooling, batch norm and ReLU per width, the last without pooling; a mean.

    [B, in_channels, H, W] -> [B, widths[-1]]; H and W of at least 2^(len(widths) - 1), else InputError.
    """
    if not widths:
        raise InputError("a convolutional net needs the width of one block at least, widths is empty")
    smallest = 2 ** (len(widths) - 1)
    if image_size < smallest:
        raise InputError(f"{len(widths)} blocks need images of {smallest} pixels or more, these have {image_size}")
    net = nn.Sequential()
    for k, width in enumerate(widths):
        net.append(nn.Conv2d(in_channels if k == 0 else widths[k - 1], width, 3, padding=1, bias=False))
        if k < len(widths) - 1:
            net.append(nn.MaxPool2d(2))  # before norm and ReLU, which then see a quarter of the pixels
        net.append(nn.BatchNorm2d(width))
        net.append(nn.ReLU(inplace=True))
    net.append(nn.AdaptiveAvgPool2d(1))
    net.append(nn.Flatten())
    return finish(net, widths[-1], channels_last, compile)
