"""The settings of one kind of view, and how uniform random numbers become the parameters of each image.

N images, P uniforms per image and view.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from contrast.errors import InputError
from contrast.views.blur import blur_radius
from contrast.views.colour import HUE
from contrast.views.geometry import BOX_UNIFORMS, random_boxes

# How many random numbers each decision takes, in the order of `Recipe.parameters`. A recipe leaves those that it does
# not need unread, so that switching one operation on or off does not change the random numbers of the others.
COLUMNS = (BOX_UNIFORMS, 1, 1, 2, 1, 4, 4, 1, 1, 1, 1)
UNIFORMS = sum(COLUMNS)

LIMITS = {
    **dict.fromkeys(("flip", "jitter", "greyscale", "blur", "solarise", "translation"), 1),
    **dict.fromkeys(("brightness", "contrast", "saturation", "strength"), math.inf),
    **{"hue": 0.5, "rotation": 180},
}


class Parameters(NamedTuple):
    """What happens to each of N images."""

    boxes: Tensor  # [N, 4] top, left, height, width
    flip: Tensor  # [N] bool
    angle: Tensor  # [N] degrees clockwise
    shift: Tensor  # [N, 2] pixels right and down
    factors: Tensor  # [N, 4] of brightness, contrast, saturation, hue; 1, 1, 1, 0 for an image without jitter
    order: Tensor  # [N, 4] int64: which of the four comes first, ..., last
    greyscale: Tensor  # [N] bool
    blur: Tensor  # [N] bool
    sigma: Tensor  # [N] pixels
    solarise: Tensor  # [N] bool


@dataclass(frozen=True)
class Recipe:
    """The settings of one kind of view. A setting out of range raises `InputError`."""

    size: int  # S, pixels a side of the view
    crop_scale: tuple[float, float] = (0.08, 1.0)  # area of the random crop, as a fraction of the image's
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of the random crop
    flip: float = 0.5  # probability of a horizontal flip
    rotation: float = 0.0  # largest angle in degrees, in both directions, before the crop
    translation: float = 0.0  # largest shift as a fraction of the side, in all directions, before the crop
    jitter: float = 0.8  # probability of colour jitter: the next four operations in a random order
    brightness: float = 0.8  # multiplied by 1 +- strength x brightness
    contrast: float = 0.8  # multiplied by 1 +- strength x contrast
    saturation: float = 0.8  # multiplied by 1 +- strength x saturation
    hue: float = 0.2  # turned by up to +- strength x hue of a full circle
    strength: float = 1.0  # of the four operations of the jitter together
    greyscale: float = 0.2  # probability
    blur: float = 0.5  # probability of Gaussian blur
    sigma: tuple[float, float] = (0.1, 2.0)  # range of the blur's standard deviation in pixels
    solarise: float = 0.0  # probability

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 1:
            raise InputError(f"the size of a view is a whole number of pixels, at least 1, not {self.size}")
        for name, high in LIMITS.items():
            if not 0 <= getattr(self, name) <= high or getattr(self, name) == math.inf:
                raise InputError(f"{name} is a number between 0 and {high}, not {getattr(self, name)}")
        if self.strength * self.hue > 0.5:
            raise InputError(f"strength x hue is at most 0.5, half a circle, not {self.strength} x {self.hue}")
        for name, high in (("crop_scale", 1.0), ("crop_ratio", math.inf), ("sigma", math.inf)):
            pair = tuple(getattr(self, name))
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= high:
                raise InputError(f"{name} is a range (low, high) with 0 < low <= high <= {high}, not {pair}")
            object.__setattr__(self, name, pair)  # a recipe has to be hashable, and a list from YAML is not
        if self.blur > 0 and self.size <= blur_radius(self.size):
            raise InputError(f"an image of {self.size} x {self.size} pixels is too small to blur")

    def parameters(self, uniforms: Tensor, height: int, width: int) -> Parameters:
        """The parameters of N images of height x width pixels from uniforms [N, P] in [0, 1).

        Each is the inverse distribution function of its uniform. Probabilities and ranges are those of torchvision's
        transforms of the same names.
        """
        box, flip, angle, shift, jitter, order, factors, greyscale, blur, sigma, solarise = (
            part.squeeze(1) for part in uniforms.split(COLUMNS, dim=1)
        )
        x, y = (2 * shift - 1).unbind(dim=1)
        jittered = jitter < self.jitter
        changes = []
        for column, spread in enumerate((self.brightness, self.contrast, self.saturation)):
            spread = self.strength * spread
            factor = _between(max(0.0, 1 - spread), 1 + spread, factors[:, column])
            changes.append(torch.where(jittered, factor, 1.0))
        turn = self.strength * self.hue
        changes.append(torch.where(jittered, _between(-turn, turn, factors[:, HUE]), 0.0))
        return Parameters(
            boxes=random_boxes(box, height, width, self.crop_scale, self.crop_ratio),
            flip=flip < self.flip,
            angle=_between(-self.rotation, self.rotation, angle),
            shift=torch.stack((x * (self.translation * width), y * (self.translation * height)), dim=1),
            factors=torch.stack(changes, dim=1),
            order=order.argsort(dim=1, stable=True),
            greyscale=greyscale < self.greyscale,
            blur=blur < self.blur,
            sigma=_between(*self.sigma, sigma),
            solarise=solarise < self.solarise,
        )


def _between(low: float, high: float, uniform: Tensor) -> Tensor:
    return low + (high - low) * uniform
