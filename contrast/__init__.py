"""contrast: contrastive learning, from noise-contrastive estimation to InfoNCE, in one vocabulary."""

__version__ = "0.1.0"
