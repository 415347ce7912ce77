"""SimCLR's augmentations (Chen et al. 2020, appendix A) for a whole batch, on the device of its pixels.

V views, B images, C channels, H x W pixels in, S x S pixels out, P uniforms per image and view.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from contrast.errors import InputError
from contrast.views.batched import apply_where_
from contrast.views.blur import blur_radius, gaussian_blur
from contrast.views.colour import Steps, greyscale, jitter_, jitter_steps, solarise
from contrast.views.geometry import Points, affine, crop_points, resample
from contrast.views.recipe import UNIFORMS, Parameters, Recipe

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
        views: int | Sequence[Mapping[str, Any]] = 2,
        **settings: float | tuple[float, float],
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
        shape = (len(self.recipes), batch, UNIFORMS)
        return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float32)

    @torch.no_grad()
    def forward(self, pixels: Tensor, uniforms: Tensor) -> list[Tensor]:
        """V views [B, C, S, S] in 0..1 of pixels [B, C, H, W], uint8 or floats in 0..1, with uniforms [V, B, P].

        The views are float32 on the device of `pixels`. An image's views depend on its own pixels and uniforms only.
        Raises InputError for other shapes and types.
        """
        if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or 0 in pixels.shape:
            raise InputError(f"views are made of images [B, 1 or 3, H, W], not of a tensor {list(pixels.shape)}")
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
    # Images with the same operations are put next to each other, so that most operations apply to a whole chunk.
    order = (2 * (steps.before + steps.after) + parameters.blur).argsort(stable=True)
    chunks = (zip(*(field[order].split(count) for field in each), strict=True) for each in (parameters, points, steps))
    for rows, p, at, s in zip(order.split(count), *chunks, strict=True):
        chunk = pixels.index_select(0, source[rows])
        out.index_copy_(0, rows, _augment(chunk, Parameters(*p), Points(*at), Steps(*s), recipe))
    return out


def _augment(pixels: Tensor, p: Parameters, points: Points, steps: Steps, recipe: Recipe) -> Tensor:
    """One view of each image [N, C, H, W], with the operations in SimCLR's order."""
    images = pixels.float()
    if pixels.dtype == torch.uint8:
        images.mul_(1 / 255)
    if recipe.rotation or recipe.translation:
        images = affine(images, p.angle, p.shift)
    images = resample(images, points)
    if recipe.jitter:
        images = jitter_(images, steps)
    if recipe.greyscale and images.shape[1] == 3:
        images = apply_where_(images, p.greyscale, greyscale)
    if recipe.blur:
        radius = blur_radius(recipe.size)
        images = apply_where_(images, p.blur, lambda blurred, sigma: gaussian_blur(blurred, sigma, radius), p.sigma)
    if recipe.solarise:
        images = apply_where_(images, p.solarise, solarise)
    return images
