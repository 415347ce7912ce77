"""The projection head, the MLP between encoder and loss: one builder for SimCLR, MoCo v2, MoCo v3 and NNCLR."""

from torch import nn

from contrast.encoders.contract import finish
from contrast.errors import InputError


def mlp(
    in_features: int,
    out_features: int = 128,
    hidden_features: int | None = None,
    layers: int = 2,
    norm: bool = True,
    last_norm: bool = False,
    last_affine: bool = True,
) -> nn.Sequential:
    """A projection head (projector) of linear layers with ReLU between them, [B, in_features] -> [B, out_features].

    out_features     D, dimensions of a projection
    hidden_features  None: as wide as the input
    layers           number of linear layers. 0: no projection head, the output is the input, `out_features` is ignored
    norm             batch norm before every ReLU
    last_norm        batch norm after the last layer
    last_affine      that norm has a learned scale and shift
    A linear layer before batch norm has no bias, because the norm subtracts the mean.

    SimCLR (Chen et al. 2020a): 2 layers, hidden as wide as the input, 128 out. SimCLR v2 (2020b): 3 layers.
    MoCo v2 (Chen et al. 2020c): the same without norm. MoCo v3 (Chen et al. 2021): 3 layers, hidden 4096, 256 out, the
    last norm without affine. NNCLR (Dwibedi et al. 2021): 3 layers, hidden 2048, 256 out, norm after every layer.
    """
    if layers < 0:
        raise InputError(f"a projector of {layers} layers cannot be built; 0 means none")
    if layers == 0:
        return finish(nn.Sequential(), in_features)
    width, hidden = in_features, in_features if hidden_features is None else hidden_features
    net = nn.Sequential()
    for _ in range(layers - 1):
        net.append(nn.Linear(width, hidden, bias=not norm))
        if norm:
            net.append(nn.BatchNorm1d(hidden))
        net.append(nn.ReLU(inplace=True))
        width = hidden
    net.append(nn.Linear(width, out_features, bias=not last_norm))
    if last_norm:
        net.append(nn.BatchNorm1d(out_features, affine=last_affine))
    return finish(net, out_features)


def predictor(
    in_features: int,
    hidden_features: int | None = None,
    layers: int = 2,
    norm: bool = True,
    last_norm: bool = False,
    last_affine: bool = True,
) -> nn.Sequential:
    """The prediction head, an `mlp` whose output is as wide as its input, [B, D] -> [B, D]; only queries pass it.

    NNCLR: 2 layers, hidden 4096. MoCo v3: the same, with the last norm without affine.
    """
    return mlp(in_features, in_features, hidden_features, layers, norm, last_norm, last_affine)
