"""Random views (augmentations) of images, computed for a whole batch at once with random parameters per image."""

from contrast.views.grid import grid, save_grid
from contrast.views.own import OwnViews
from contrast.views.simclr import SimCLRViews, natural

__all__ = ["OwnViews", "SimCLRViews", "grid", "natural", "save_grid"]
