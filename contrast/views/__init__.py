"""Random views (augmentations) of images, computed for a whole batch at once with random parameters per image."""

from contrast.views.grid import grid, save_grid
from contrast.views.simclr import SimCLRViews

__all__ = ["SimCLRViews", "grid", "save_grid"]
