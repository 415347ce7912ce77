"""Random views of images, made for a whole batch at once with parameters per image."""

from contrast.views.grid import grid, save_grid
from contrast.views.simclr import SimCLRViews

__all__ = ["SimCLRViews", "grid", "save_grid"]
