"""A trained encoder taken out of a run: from a checkpoint of this library, or from a file of plain weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from contrast.encoders.weights import load_encoder
from contrast.errors import InputError
from contrast.module import Normalize


class Frozen(nn.Module):
    """An encoder with the normalisation that it was trained under, [B, C, H, W] -> [B, num_features]."""

    def __init__(self, normalize: Normalize, encoder: nn.Module) -> None:
        super().__init__()
        self.normalize, self.encoder = normalize, encoder
        self.num_features = int(encoder.num_features)  # type: ignore[arg-type]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encoder(self.normalize(pixels))


def checkpoint_file(path: str | Path) -> Path:
    """The checkpoint that `path` means: itself, or `checkpoints/last.ckpt` of a run folder."""
    path = Path(path)
    if path.is_dir():
        path = path / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    return path


def from_checkpoint(saved: Mapping[str, Any], encoder_cfg: Any = None) -> Frozen:
    """The encoder of a checkpoint of this library, built from the configuration inside it.

    encoder_cfg  builds another architecture instead; the weights must fit it exactly, or InputError lists the keys.
    """
    config, state = saved["config"], saved["state_dict"]
    facts = config["images"]
    node = OmegaConf.create(config["encoder"]) if encoder_cfg is None else encoder_cfg
    encoder = instantiate(node, in_channels=facts["channels"], image_size=facts["size"])
    load_encoder(encoder, saved)
    normalize = Normalize(state["normalize.mean"].flatten(), state["normalize.std"].flatten())
    return Frozen(normalize, encoder)


def from_weights(saved: Mapping[str, Any], encoder_cfg: Any, images: Any) -> Frozen:
    """The encoder of a file of plain weights, which say nothing of their architecture: `encoder_cfg` builds it.

    Pixels are normalised by the statistics of `images`, the training set of the evaluation.
    """
    if encoder_cfg is None:
        raise InputError("plain weights do not name their architecture: give encoder=...")
    encoder = instantiate(encoder_cfg, in_channels=images.channels, image_size=images.size)
    load_encoder(encoder, saved)
    return Frozen(Normalize(*images.statistics()), encoder)


def is_own(saved: Mapping[str, Any]) -> bool:
    """Whether this is a checkpoint of this library, which carries its configuration."""
    return isinstance(saved.get("config"), Mapping) and isinstance(saved.get("state_dict"), Mapping)
