"""The recipe of one view: how often and how strongly an image is changed, and the parameters that uniforms turn into.

N images, P uniforms per image and view.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from contrast.errors import InputError
from contrast.views.blur import blur_radius
from contrast.views.crop import BOX_UNIFORMS, random_boxes
from contrast.views.jitter import HUE

# One column per random decision; a recipe that never takes a decision leaves its column unread, so that switching one
# operation on or off leaves the randomness of all others as it was.
COLUMNS = {
    "box": BOX_UNIFORMS,
    "flip": 1,
    "angle": 1,
    "shift": 2,
    "jitter": 1,
    "order": 4,
    "factors": 4,
    "greyscale": 1,
    "blur": 1,
    "sigma": 1,
    "solarise": 1,
}
UNIFORMS = sum(COLUMNS.values())


class Parameters(NamedTuple):
    """What happens to each of N images."""

    boxes: Tensor  # [N, 4] top, left, height, width
    flip: Tensor  # [N] bool
    angle: Tensor  # [N] degrees clockwise
    shift: Tensor  # [N, 2] pixels right and down
    factors: Tensor  # [N, 4] of brightness, contrast, saturation, hue; 1, 1, 1, 0 where there is no jitter
    order: Tensor  # [N, 4] int64: which of the four comes first, ..., last
    greyscale: Tensor  # [N] bool
    blur: Tensor  # [N] bool
    sigma: Tensor  # [N] pixels
    solarise: Tensor  # [N] bool


@dataclass(frozen=True)
class Recipe:
    """One view. Arguments as in `SimCLRViews`; `InputError` for any that makes no sense."""

    size: int
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    flip: float
    rotation: float
    translation: float
    jitter: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    strength: float
    greyscale: float
    blur: float
    sigma: tuple[float, float]
    solarise: float

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 1:
            raise InputError(f"a view has a whole number of pixels a side, at least 1, not {self.size}")
        for name in ("flip", "jitter", "greyscale", "blur", "solarise"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is a probability between 0 and 1, not {getattr(self, name)}")
        for name, most in (("crop_scale", 1.0), ("crop_ratio", float("inf")), ("sigma", float("inf"))):
            pair = tuple(getattr(self, name))
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
                raise InputError(f"{name} is a range (low, high) with 0 < low <= high <= {most}, not {pair}")
            object.__setattr__(self, name, pair)  # a list from YAML would not hash
        for name in ("brightness", "contrast", "saturation", "strength"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is at least 0, not {getattr(self, name)}")
        if self.strength * self.hue > 0.5:
            raise InputError(f"strength x hue is at most 0.5, half a circle, not {self.strength} x {self.hue}")
        for name, most in (("hue", 0.5), ("rotation", 180), ("translation", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise InputError(f"{name} lies between 0 and {most}, not {getattr(self, name)}")
        if self.blur > 0 and self.size <= blur_radius(self.size):
            raise InputError(f"an image of {self.size} x {self.size} pixels is too small to blur")

    def parameters(self, uniforms: Tensor, height: int, width: int) -> Parameters:
        """uniforms [N, P] in [0, 1) to the parameters of N images of height x width, by inverse distribution functions.

        Probabilities and ranges are those of torchvision's transforms of the same names.
        """
        parts = dict(zip(COLUMNS, uniforms.split(list(COLUMNS.values()), dim=1), strict=True))
        u = {name: part[:, 0] if part.shape[1] == 1 else part for name, part in parts.items()}
        x, y = (2 * u["shift"] - 1).unbind(dim=1)
        jitter = u["jitter"] < self.jitter
        factors = []
        for column, spread in enumerate((self.brightness, self.contrast, self.saturation)):
            spread = self.strength * spread
            factor = _between(max(0.0, 1 - spread), 1 + spread, u["factors"][:, column])
            factors.append(torch.where(jitter, factor, 1.0))
        turn = self.strength * self.hue
        factors.append(torch.where(jitter, _between(-turn, turn, u["factors"][:, HUE]), 0.0))
        return Parameters(
            boxes=random_boxes(u["box"], height, width, self.crop_scale, self.crop_ratio),
            flip=u["flip"] < self.flip,
            angle=_between(-self.rotation, self.rotation, u["angle"]),
            shift=torch.stack((x * (self.translation * width), y * (self.translation * height)), dim=1),
            factors=torch.stack(factors, dim=1),
            order=u["order"].argsort(dim=1, stable=True),
            greyscale=u["greyscale"] < self.greyscale,
            blur=u["blur"] < self.blur,
            sigma=_between(*self.sigma, u["sigma"]),
            solarise=u["solarise"] < self.solarise,
        )


def _between(low: float, high: float, uniform: Tensor) -> Tensor:
    return low + (high - low) * uniform
