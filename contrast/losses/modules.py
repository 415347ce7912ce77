"""The losses of `contrast.functional` as modules, for a training loop of your own.

    loss = NTXentLoss(temperature=0.2)
    loss(projector(encoder(one)), projector(encoder(other))).backward()

N images or pairs, B queries, K negatives, D dimensions. The functions have the equations and raise InputError for
vectors that do not fit; the modules raise it for a temperature or a bias that does not.
"""

import math

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict, Unpack

from contrast.errors import InputError
from contrast.losses import functions as F
from contrast.losses.functions import Reduction


class FunctionOptions(TypedDict, total=False):
    """The keyword arguments that all functions share."""

    gather: bool
    reduction: Reduction
    normalize: bool


class Settings(FunctionOptions, total=False):
    """The keyword arguments that all modules share; `ContrastiveLoss` describes them."""

    learnable: bool
    minimum: float
    maximum: float


class ContrastiveLoss(nn.Module):
    """What the losses below have in common: a temperature, fixed or learned, and the options of a function.

    temperature       a positive number, or a module whose call gives a scalar tensor (a schedule, for example)
    learnable         the temperature is exp of a parameter that starts at log(temperature). Give `loss.parameters()` to
                      the optimiser, without weight decay; under DDP the loss must be part of the module that DDP wraps
    minimum, maximum  bounds of a learnable temperature. CLIP (Radford et al. 2021, section 2.5) has a minimum of 0.01
    gather            the candidates are those of all ranks, with an exact gradient
    reduction         "mean" over the queries that have a positive, or "none": one loss per query
    normalize         vectors are compared by their cosine; False: by their dot product
    """

    def __init__(
        self,
        temperature: float | nn.Module = 0.1,
        *,
        learnable: bool = False,
        minimum: float = 0.01,
        maximum: float = 1.0,
        gather: bool = False,
        reduction: Reduction = "mean",
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(temperature, nn.Module):
            if not (isinstance(temperature, int | float) and 0 < temperature < math.inf):
                raise InputError(f"temperature must be a positive number or a module, got {temperature!r}")
            temperature = LearnableTemperature(temperature, minimum, maximum) if learnable else temperature
        elif learnable:
            raise InputError("learnable=True needs a number as temperature: a module brings its own parameters")
        self.temperature = temperature
        self.options = FunctionOptions(gather=gather, reduction=reduction, normalize=normalize)

    def current_temperature(self) -> float | Tensor:
        """A number, or a scalar tensor with a gradient."""
        return self.temperature() if isinstance(self.temperature, nn.Module) else self.temperature

    def extra_repr(self) -> str:
        """What `print` shows of the module besides its submodules."""
        fixed = {} if isinstance(self.temperature, nn.Module) else {"temperature": self.temperature}
        return ", ".join(f"{name}={value!r}" for name, value in (fixed | self.options).items())


class LearnableTemperature(nn.Module):
    """exp of a parameter, kept in [minimum, maximum] whenever it is used in training.

    The parameter itself is clamped: a clamp of its exponential would have no gradient beyond the bounds, and the
    temperature would stick there.
    """

    def __init__(self, initial: float = 0.07, minimum: float = 0.01, maximum: float = 1.0) -> None:
        super().__init__()
        if not 0 < minimum <= initial <= maximum:
            raise InputError(
                "a learnable temperature needs 0 < minimum <= temperature <= maximum, "
                f"got {minimum}, {initial}, {maximum}"
            )
        self.bounds = (math.log(minimum), math.log(maximum))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(initial)))

    def forward(self) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.log_temperature.clamp_(*self.bounds)
        return self.log_temperature.exp()


class NTXentLoss(ContrastiveLoss):
    """NT-Xent, SimCLR's loss (Chen et al. 2020, eq. 1): `contrast.functional.nt_xent`."""

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """z1, z2 [N, D], row i of both is image i -> a scalar, or [2N] with reduction="none"."""
        return F.nt_xent(z1, z2, self.current_temperature(), **self.options)


class DCLLoss(ContrastiveLoss):
    """The decoupled contrastive loss (Yeh et al. 2022, eq. 6): `contrast.functional.dcl`."""

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """z1, z2 [N, D], row i of both is image i -> a scalar, or [2N] with reduction="none"."""
        return F.dcl(z1, z2, self.current_temperature(), **self.options)


class SupConLoss(ContrastiveLoss):
    """The supervised contrastive loss (Khosla et al. 2020, eq. 2): `contrast.functional.sup_con`."""

    def forward(self, z1: Tensor, z2: Tensor | None, labels: Tensor) -> Tensor:
        """z1, z2 [N, D], labels [N] integers -> a scalar, or [2N] with reduction="none".

        z2=None: the rows of z1 are all there is, whatever the number of views that they come from. For features
        [N, views, D] that is `loss(features.flatten(0, 1), None, labels.repeat_interleave(views))`.
        """
        return F.sup_con(z1, z2, labels, self.current_temperature(), **self.options)


class InfoNCELoss(ContrastiveLoss):
    """InfoNCE (van den Oord et al. 2018, eq. 4), MoCo's loss with a queue: `contrast.functional.info_nce`."""

    def forward(self, query: Tensor, key: Tensor, negatives: Tensor | None = None) -> Tensor:
        """query, key [B, D]; negatives [K, D] or [B, K, D], or None -> a scalar, or [B] with reduction="none".

        Negatives [K, D] are shared by all queries, [B, K, D] are each query's own. None: the other keys of the batch.
        """
        return F.info_nce(query, key, negatives, self.current_temperature(), **self.options)


class CLIPLoss(ContrastiveLoss):
    """CLIP's symmetric loss (Radford et al. 2021, figure 3): `contrast.functional.clip_loss`."""

    def __init__(self, temperature: float | nn.Module = 0.07, **settings: Unpack[Settings]) -> None:
        super().__init__(temperature, **settings)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """image, text [N, D], row i of both is pair i -> a scalar, or [N] with reduction="none"."""
        return F.clip_loss(image, text, self.current_temperature(), **self.options)


class SigLIPLoss(ContrastiveLoss):
    """SigLIP's sigmoid loss (Zhai et al. 2023, algorithm 1): `contrast.functional.siglip_loss`.

    bias  a finite number. With learnable=True it is a parameter, as the temperature is; both start as in the paper.
    """

    def __init__(self, temperature: float | nn.Module = 0.1, bias: float = -10.0, **settings: Unpack[Settings]) -> None:
        super().__init__(temperature, **settings)
        if not (isinstance(bias, int | float) and math.isfinite(bias)):
            raise InputError(f"bias must be a finite number, got {bias!r}")
        self.bias = nn.Parameter(torch.tensor(float(bias))) if settings.get("learnable") else bias

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """image, text [N, D], row i of both is pair i -> a scalar, or [N], of each image, with reduction="none"."""
        return F.siglip_loss(image, text, self.current_temperature(), self.bias, **self.options)
