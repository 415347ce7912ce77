"""SimCLR's augmentations (Chen et al. 2020, appendix A) for a whole batch, on the device where it is.

V views, B images, C channels, H x W pixels in, S x S pixels out, P uniforms per image and view.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from contrast.errors import InputError
from contrast.views.affine import affine
from contrast.views.blur import blur_radius, gaussian_blur
from contrast.views.choose import choose_
from contrast.views.colour import greyscale, solarise
from contrast.views.crop import Points, crop_points, resample
from contrast.views.jitter import Steps, jitter_, jitter_steps
from contrast.views.recipe import UNIFORMS, Parameters, Recipe

CACHE_FLOATS = 200_000  # per chunk on a CPU: with its temporaries it stays in a 2 MB second-level cache


class SimCLRViews(nn.Module):
    """Random views of images; a pure function of the pixels and of uniform random numbers.

    size          pixels a side of a view
    views         how many; or a list, one mapping per view, of the arguments in which that view differs from the
                  others, with `count` for several views of a kind:
                      BYOL, MoCo v3   [{blur: 1.0}, {blur: 0.1, solarise: 0.2}]
                      multi-crop      [{count: 2}, {count: 6, size: 96, crop_scale: [0.05, 0.14]}]
    crop_scale    area of the random crop, as a part of the image's;  crop_ratio  its width / height
    flip          probability of a mirror image
    rotation      largest angle in degrees;  translation  largest shift as a part of the side; both before the crop
    jitter        probability of a change of colour, within which brightness, contrast and saturation are multiplied by
                  1 +- strength x theirs and the hue is turned by +- strength x hue circles, in a random order per image
    greyscale, blur, solarise    probabilities;  sigma  range of the blur's standard deviation in pixels

    Every decision is taken per image. An argument that makes no sense raises `InputError`.
    """

    def __init__(
        self,
        size: int,
        views: int | Sequence[Mapping[str, Any]] = 2,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        rotation: float = 0.0,
        translation: float = 0.0,
        jitter: float = 0.8,
        brightness: float = 0.8,
        contrast: float = 0.8,
        saturation: float = 0.8,
        hue: float = 0.2,
        strength: float = 1.0,
        greyscale: float = 0.2,
        blur: float = 0.5,
        sigma: tuple[float, float] = (0.1, 2.0),
        solarise: float = 0.0,
    ) -> None:
        super().__init__()
        common = Recipe(
            size=size,
            crop_scale=crop_scale,
            crop_ratio=crop_ratio,
            flip=flip,
            rotation=rotation,
            translation=translation,
            jitter=jitter,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            strength=strength,
            greyscale=greyscale,
            blur=blur,
            sigma=sigma,
            solarise=solarise,
        )
        self.recipes = _recipes(common, [{"count": views}] if isinstance(views, int) else views)

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """Uniforms [V, B, P] for a batch, on the generator's device."""
        shape = (len(self.recipes), batch, UNIFORMS)
        return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float32)

    @torch.no_grad()
    def forward(self, pixels: Tensor, uniforms: Tensor) -> list[Tensor]:
        """pixels [B, C, H, W], uint8 or floats in 0..1, and uniforms [V, B, P] to V views [B, C, S, S] in 0..1.

        float32, on the device of `pixels`. An image's views depend on its own pixels and uniforms only.
        """
        self._check(pixels, uniforms)
        views: list[Tensor] = [pixels] * len(self.recipes)
        with torch.autocast(pixels.device.type, enabled=False):  # half precision has fewer levels than a pixel
            for recipe in dict.fromkeys(self.recipes):  # views of one kind pass as one batch
                members = [v for v, other in enumerate(self.recipes) if other == recipe]
                several = torch.cat([uniforms[v] for v in members])  # [M B, P]
                for v, view in zip(members, augment(pixels, several, recipe).chunk(len(members)), strict=True):
                    views[v] = view
        return views

    def _check(self, pixels: Tensor, uniforms: Tensor) -> None:
        if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or 0 in pixels.shape:
            raise InputError(f"views are made of images [B, 1 or 3, H, W], not of a tensor {list(pixels.shape)}")
        if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
            raise InputError(f"pixels are uint8 or floats in 0..1, not {pixels.dtype}")
        expected = (len(self.recipes), len(pixels), UNIFORMS)
        if uniforms.shape != expected:
            raise InputError(f"{list(expected)} uniforms needed, not {list(uniforms.shape)}")

    def extra_repr(self) -> str:
        return "\n".join(str(recipe) for recipe in self.recipes)


def _recipes(common: Recipe, views: Sequence[Mapping[str, Any]]) -> list[Recipe]:
    """One recipe per view."""
    names = [field.name for field in dataclasses.fields(Recipe)]
    recipes = []
    for view in views:
        changes = dict(view)
        count = changes.pop("count", 1)
        for name in changes:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                raise InputError(f"a view has no `{name}`" + (f"; did you mean `{near[0]}`?" if near else ""))
        if not isinstance(count, int) or count < 1:
            raise InputError(f"a number of views is a whole number of at least 1, not {count}")
        recipes += [dataclasses.replace(common, **changes)] * count
    if not recipes:
        raise InputError("there are 0 views; at least 1 is needed")
    return recipes


def augment(pixels: Tensor, uniforms: Tensor, recipe: Recipe) -> Tensor:
    """M views of one recipe of each image: pixels [B, C, H, W], uniforms [M B, P] -> [M B, C, S, S], view by view."""
    images, channels, height, width = pixels.shape
    parameters = recipe.parameters(uniforms, height, width)
    points = crop_points(parameters.boxes, height, width, recipe.size, parameters.flip)
    steps = jitter_steps(parameters.factors, parameters.order, channels)
    source = torch.arange(len(uniforms), device=pixels.device) % images
    if pixels.device.type != "cpu":
        return _augment(pixels.index_select(0, source), parameters, points, steps, recipe)
    out = torch.empty(len(uniforms), channels, recipe.size, recipe.size, dtype=torch.float32)
    count = max(1, CACHE_FLOATS // (channels * max(height * width, recipe.size**2)))
    # Images that take the same path side by side: then a chunk rarely has to be taken apart and put together again.
    path = (2 * (steps.before + steps.after) + parameters.blur).argsort(stable=True)
    chunks = (zip(*(field[path].split(count) for field in each), strict=True) for each in (parameters, points, steps))
    for rows, p, at, s in zip(path.split(count), *chunks, strict=True):
        some = pixels.index_select(0, source[rows])
        out.index_copy_(0, rows, _augment(some, Parameters(*p), Points(*at), Steps(*s), recipe))
    return out


def _augment(pixels: Tensor, p: Parameters, points: Points, steps: Steps, recipe: Recipe) -> Tensor:
    """One view of each image [N, C, H, W]: the order of the operations is SimCLR's."""
    images = pixels.float()
    if pixels.dtype == torch.uint8:
        images.mul_(1 / 255)
    if recipe.rotation or recipe.translation:
        images = affine(images, p.angle, p.shift)
    images = resample(images, points)
    if recipe.jitter:
        images = jitter_(images, steps)
    if recipe.greyscale and images.shape[1] == 3:
        images = choose_(images, p.greyscale, greyscale)
    if recipe.blur:
        radius = blur_radius(recipe.size)
        images = choose_(images, p.blur, lambda chosen, sigma: gaussian_blur(chosen, sigma, radius), p.sigma)
    if recipe.solarise:
        images = choose_(images, p.solarise, solarise)
    return images
