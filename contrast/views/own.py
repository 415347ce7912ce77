"""Views by the transforms of torchvision (v2), albumentations or kornia, or by any function of an image.

V views, B images, C channels, H x W pixels in, S x S pixels out.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from contrast.errors import InputError

Transform = Callable[..., Any]
_BITS = 24  # of a uniform float32, which is a whole number / 2^24


class OwnViews(nn.Module):
    """Random views by a transform of one image, as a pure function of the pixels and of uniform random numbers.

    size        S, pixels a side of what the transform returns
    transform   of torchvision.transforms.v2 or any function: uint8 [C, H, W] -> uint8 or floats in 0..1 [C, S, S];
                of albumentations: called with `image` [H, W, C]; of kornia: called with floats in 0..1 [1, C, H, W].
                A list has a transform for each kind of view
    views       how many views each transform makes; by default 2 of one transform, and 1 of each of several

    The uniforms of a view are the seed of Python's, NumPy's and torch's generators while it is made, so a resumed run
    and several ranks make the views that one run in one process makes. The generators are then as they were before.
    Images are transformed one after the other: `SimCLRViews` is several times as fast where it has the operations.
    Raises InputError for a transform that returns another shape or values outside 0..1.
    """

    def __init__(self, size: int, transform: Transform | Sequence[Transform], views: int | None = None) -> None:
        super().__init__()
        transforms = list(transform) if isinstance(transform, Sequence) else [transform]
        count = views if views is not None else 2 if len(transforms) == 1 else 1
        if not transforms or count < 1:
            raise InputError(f"views need at least 1 transform and 1 view of it, not {len(transforms)} and {count}")
        self.size = size
        self.transforms = [each for each in transforms for _ in range(count)]

    @property
    def sizes(self) -> list[int]:
        """S of each view."""
        return [self.size] * len(self.transforms)

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """Uniforms [V, B, 2] for a batch of B images, on the device of the generator."""
        return torch.rand(len(self.transforms), batch, 2, generator=generator, device=generator.device)

    @torch.no_grad()
    def forward(self, pixels: Tensor, uniforms: Tensor) -> list[Tensor]:
        """V views [B, C, S, S] in 0..1 of pixels [B, C, H, W] uint8, with uniforms [V, B, 2]."""
        if pixels.dtype != torch.uint8:
            pixels = (pixels * 255).round().to(torch.uint8)
        expected = (len(self.transforms), len(pixels), 2)
        if uniforms.shape != expected:
            raise InputError(f"the views need uniforms {list(expected)}, not {list(uniforms.shape)}")
        high, low = (uniforms.double().cpu() * 2**_BITS).long().unbind(dim=2)  # [V, B]
        seeds = (high * 2**_BITS + low).tolist()
        views = []
        with unchanged_generators(pixels.device), torch.autocast(pixels.device.type, enabled=False):
            for transform, row in zip(self.transforms, seeds, strict=True):
                made = [self._view(transform, image, seed) for image, seed in zip(pixels, row, strict=True)]
                views.append(torch.stack(made))
        return views

    def _view(self, transform: Transform, image: Tensor, seed: int) -> Tensor:
        """One view of image [C, H, W] -> [C, S, S] floats in 0..1."""
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes 3 ms where CUDA is not in use
        if image.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  # other libraries draw from it
        random.seed(seed)
        library = type(transform).__module__.partition(".")[0]
        if library == "albumentations":
            if hasattr(transform, "set_random_seed"):
                transform.set_random_seed(seed % 2**32)
            made = transform(image=np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))["image"]
            view = made if isinstance(made, Tensor) else torch.from_numpy(np.ascontiguousarray(made)).permute(2, 0, 1)
            view = view.to(image.device)
        elif library == "kornia":
            view = transform(image[None] / 255)[0]
        else:
            view = transform(image)
        shape = [len(image), self.size, self.size]
        if not isinstance(view, Tensor) or list(view.shape) != shape:
            got = list(view.shape) if isinstance(view, Tensor) else type(view).__name__
            raise InputError(f"the transform of a view returns {shape} with views.size={self.size}, not {got}")
        if view.dtype == torch.uint8:
            return view / 255
        lowest, highest = view.min().item(), view.max().item()
        if lowest < -1e-3 or highest > 1.001:
            raise InputError(
                f"the transform of a view returns values in 0..1, not {lowest:.3g}..{highest:.3g}: leave normalisation "
                "to the model"
            )
        return view.float().clamp(0, 1)


@contextmanager
def unchanged_generators(device: torch.device) -> Iterator[None]:
    """Python's, NumPy's and torch's generators are afterwards as they were before."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
