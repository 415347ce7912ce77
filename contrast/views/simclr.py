"""SimCLR's augmentations (Chen et al. 2020, appendix A) for a whole batch, on the device of its pixels.

V views, B images, C channels, H x W pixels in, S x S pixels out, P uniforms per image and view.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from contrast.errors import InputError
from contrast.views.blur import REACH, blur_radius, gaussian_blur
from contrast.views.colour import HUE, Steps, apply_where_, greyscale, jitter_, jitter_steps, solarise
from contrast.views.geometry import BOX_UNIFORMS, affine, random_boxes, resample

# How many random numbers each decision takes, in the order of `Recipe.parameters`. A recipe leaves those that it does
# not need unread, so that switching one operation on or off does not change the random numbers of the others.
COLUMNS = (BOX_UNIFORMS, 1, 1, 2, 1, 4, 4, 1, 1, 1, 1, 1, 1)
UNIFORMS = sum(COLUMNS)
TURNS = 2  # columns of the last two decisions, drawn after all others, so that older runs draw what they drew

LIMITS = {
    **dict.fromkeys(("flip", "vertical_flip", "quarter_turns"), 1),
    **dict.fromkeys(("jitter", "greyscale", "blur", "solarise", "translation"), 1),
    **dict.fromkeys(("brightness", "contrast", "saturation", "strength"), math.inf),
    **{"hue": 0.5, "rotation": 180},
}


Setting: TypeAlias = float | Sequence[float]  # of a `Recipe`: a number or a range


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
    vertical_flip: Tensor  # [N] bool
    quarters: Tensor  # [N] int64: quarter turns to the left, 0..3


@dataclass(frozen=True)
class Recipe:
    """The settings of one kind of view. A setting out of range raises `InputError`."""

    size: int  # S, pixels a side of the view
    crop_scale: tuple[float, float] = (0.08, 1.0)  # area of the random crop, as a fraction of the image's
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of the random crop
    flip: float = 0.5  # probability of a horizontal flip
    vertical_flip: float = 0.0  # probability; with a flip and quarter turns, of 0.75, all 8 orientations are alike
    quarter_turns: float = 0.0  # probability of a turn by 90, 180 or 270 degrees, each a third; 0.75: all alike
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
        box, flip, angle, shift, jitter, order, factors, greyscale, blur, sigma, solarise, vertical, quarter = (
            part.squeeze(1) for part in uniforms.split(COLUMNS, dim=1)
        )
        x, y = (2 * shift - 1).unbind(dim=1)
        jittered = jitter < self.jitter
        changes = []
        for column, spread in enumerate((self.brightness, self.contrast, self.saturation)):
            spread = self.strength * spread
            factor = _between(max(0.0, 1 - spread), 1 + spread, factors[:, column])
            changes.append(torch.where(jittered, factor, 1.0))
        turn, turned = self.strength * self.hue, quarter < self.quarter_turns
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
            vertical_flip=vertical < self.vertical_flip,
            quarters=torch.where(turned, 1 + 3 * quarter / max(self.quarter_turns, 1e-9), 0.0).long(),
        )


def _between(low: float, high: float, uniform: Tensor) -> Tensor:
    return low + (high - low) * uniform


SMALL = 64  # pixels; larger images have SimCLR's views of ImageNet
CACHE_FLOATS = 200_000  # per chunk on a CPU: with its temporaries a chunk stays in a 2 MB second-level cache


class SimCLRViews(nn.Module):
    """Random views of images, as a pure function of the pixels and of uniform random numbers.

    size      pixels a side of a view
    views     the number of views; or a list with one mapping per view, which holds the settings in which that view
              differs from the others, and `count` for several views of the same kind:
                  BYOL, MoCo v3   [{blur: 1.0}, {blur: 0.1, solarise: 0.2}]
                  multi-crop      [{count: 2}, {count: 6, size: 96, crop_scale: [0.05, 0.14]}]
    settings  of all views: those of `Recipe`, which lists them with their defaults

    Every decision is taken for each image separately. A setting that is unknown or out of range raises `InputError`.
    """

    def __init__(
        self,
        size: int,
        views: int | Sequence[Mapping[str, Setting]] = 2,
        **settings: Setting,
    ) -> None:
        super().__init__()
        names = [field.name for field in dataclasses.fields(Recipe)]
        self.recipes: list[Recipe] = []
        for view in [{"count": views}] if isinstance(views, int) else views:
            recipe: dict[str, Any] = {"size": size, **settings, **view}
            count = recipe.pop("count", 1)
            for name in recipe:
                if name not in names:
                    near = difflib.get_close_matches(name, names, n=1)
                    suggestion = f"; did you mean `{near[0]}`?" if near else ""
                    raise InputError(f"a view has no setting `{name}`{suggestion}")
            if not isinstance(count, int) or count < 1:
                raise InputError(f"the number of views is a whole number of at least 1, not {count}")
            self.recipes += [Recipe(**recipe)] * count
        if not self.recipes:
            raise InputError("there are 0 views; at least 1 is needed")

    @property
    def sizes(self) -> list[int]:
        """S of each view."""
        return [recipe.size for recipe in self.recipes]

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """Uniforms [V, B, P] for a batch of B images, on the device of the generator."""
        shape = (len(self.recipes), batch)
        parts = [
            torch.rand(*shape, columns, generator=generator, device=generator.device, dtype=torch.float32)
            for columns in (UNIFORMS - TURNS, TURNS)
        ]
        return torch.cat(parts, dim=2)

    @torch.no_grad()
    def forward(self, pixels: Tensor, uniforms: Tensor) -> list[Tensor]:
        """V views [B, C, S, S] in 0..1 of pixels [B, C, H, W], uint8 or floats in 0..1, with uniforms [V, B, P].

        The views are float32 on the device of `pixels`. An image's views depend on its own pixels and uniforms only.
        Raises InputError for other shapes and types.
        """
        if pixels.ndim != 4 or 0 in pixels.shape:
            raise InputError(f"views are made of images [B, C, H, W], not of a tensor {list(pixels.shape)}")
        if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
            raise InputError(f"pixels are uint8 or floats in 0..1, not {pixels.dtype}")
        expected = (len(self.recipes), len(pixels), UNIFORMS)
        if uniforms.shape != expected:
            raise InputError(f"the views need uniforms {list(expected)}, not {list(uniforms.shape)}")
        views: list[Tensor] = [pixels] * len(self.recipes)
        with torch.autocast(pixels.device.type, enabled=False):  # half precision has fewer levels than a pixel
            for recipe in dict.fromkeys(self.recipes):  # all views of one recipe are computed as one batch
                members = [v for v, other in enumerate(self.recipes) if other == recipe]
                stacked = torch.cat([uniforms[v] for v in members])  # [M B, P]
                for v, view in zip(members, augment(pixels, stacked, recipe).chunk(len(members)), strict=True):
                    views[v] = view
        return views

    def extra_repr(self) -> str:
        return "\n".join(str(recipe) for recipe in self.recipes)


def natural(size: int, views: int | Sequence[Mapping[str, Setting]] = 2, **settings: Setting) -> SimCLRViews:
    """SimCLR's views of natural images, by their size: for at most 64 pixels half the colour and no blur.

    Chen et al. 2020: appendix A for ImageNet, B.9 for CIFAR-10. `settings` come before either.
    """
    recipe: dict[str, Setting] = {"strength": 0.5, "blur": 0.0} if size <= SMALL else {}
    return SimCLRViews(size, views, **(recipe | settings))


def augment(pixels: Tensor, uniforms: Tensor, recipe: Recipe) -> Tensor:
    """M views of one recipe of each image: pixels [B, C, H, W], uniforms [M B, P] -> [M B, C, S, S], view by view."""
    images, channels, height, width = pixels.shape
    parameters = recipe.parameters(uniforms, height, width)
    steps = jitter_steps(parameters.factors, parameters.order, channels)
    source = torch.arange(len(uniforms), device=pixels.device) % images
    if pixels.device.type != "cpu":
        return _augment(pixels.index_select(0, source), parameters, steps, recipe)
    out = torch.empty(len(uniforms), channels, recipe.size, recipe.size, dtype=torch.float32)
    count = max(1, CACHE_FLOATS // (channels * max(height * width, recipe.size**2)))
    # Images with the same operations are put next to each other, so that most operations apply to a whole chunk.
    order = (2 * (steps.before + steps.after) + parameters.blur).argsort(stable=True)
    chunks = (zip(*(field[order].split(count) for field in each), strict=True) for each in (parameters, steps))
    for rows, p, s in zip(order.split(count), *chunks, strict=True):
        chunk = pixels.index_select(0, source[rows])
        out.index_copy_(0, rows, _augment(chunk, Parameters(*p), Steps(*s), recipe))
    return out


def _augment(pixels: Tensor, p: Parameters, steps: Steps, recipe: Recipe) -> Tensor:
    """One view of each image [N, C, H, W], with the operations in SimCLR's order."""
    images = pixels.float()
    if pixels.dtype == torch.uint8:
        images.mul_(1 / 255)
    if recipe.rotation or recipe.translation:
        images = affine(images, p.angle, p.shift)
    images = resample(images, p.boxes, recipe.size, p.flip)
    if recipe.vertical_flip:
        images = apply_where_(images, p.vertical_flip, lambda rows: rows.flip(2))
    if recipe.quarter_turns:
        for quarters in (1, 2, 3):
            images = apply_where_(
                images, p.quarters == quarters, lambda rows, k=quarters: rows.rot90(k, (2, 3)).contiguous()
            )
    if recipe.jitter:
        images = jitter_(images, steps)
    if recipe.greyscale and images.shape[1] == 3:
        images = apply_where_(images, p.greyscale, greyscale)
    if recipe.blur:
        radius = min(blur_radius(recipe.size), math.ceil(REACH * recipe.sigma[1]))
        images = apply_where_(images, p.blur, lambda blurred, sigma: gaussian_blur(blurred, sigma, radius), p.sigma)
    if recipe.solarise:
        images = apply_where_(images, p.solarise, solarise)
    return images
