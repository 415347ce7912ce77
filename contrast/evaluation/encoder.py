"""A trained encoder from a checkpoint of this library or a file of plain weights; word vectors from a run or a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig
from torch import Tensor, nn

from contrast.data.images.image_set import ImageFiles, Images
from contrast.data.text.vectors import load_vectors
from contrast.encoders.normalize import Normalize
from contrast.encoders.weights import load_encoder
from contrast.errors import InputError
from contrast.facts import complete
from contrast.keys import Second
from contrast.old_names import current

VECTORS = "vectors.safetensors"  # in the folder of a run that learned words
# Options that make a builder read or download weights, and their value without: of timm and transformers, torchvision
WITHOUT_WEIGHTS = {"pretrained": False, "checkpoint_path": "", "weights": None}


Checkpoint = Mapping[str, Any]  # the contents of a file of torch


class Frozen(nn.Module):
    """An encoder with the normalisation that it was trained under, [B, C, H, W] -> [B, num_features]."""

    def __init__(self, normalize: Normalize, encoder: nn.Module) -> None:
        super().__init__()
        self.normalize, self.encoder = normalize, encoder
        self.num_features = int(encoder.num_features)  # type: ignore[arg-type]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encoder(self.normalize(pixels))


class Towers(Frozen):
    """An encoder of images with its projector, and one of captions, into one space of D dimensions.

    It is a `Frozen`: called with images it gives features; `image` and `text` give what is compared.
    """

    def __init__(self, normalize: Normalize, encoder: nn.Module, projector: nn.Module, key: Second) -> None:
        super().__init__(normalize, encoder)
        self.projector, self.key = projector, key

    def image(self, pixels: Tensor) -> Tensor:
        return self.projector(self(pixels))  # [B, C, H, W] -> [B, D]

    def text(self, tokens: Tensor) -> Tensor:
        return self.key.embed(tokens)  # [B, L] -> [B, D]


def checkpoint_file(path: str | Path) -> Path:
    """The checkpoint that `path` means: itself, or `checkpoints/last.ckpt` of a run folder."""
    path = Path(path)
    if path.is_dir():
        path = path / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    return path


def is_own(saved: Checkpoint) -> bool:
    """Whether this is a checkpoint of this library, which carries its configuration."""
    return isinstance(saved.get("config"), Mapping) and isinstance(saved.get("state_dict"), Mapping)


def from_checkpoint(saved: Checkpoint, encoder_cfg: DictConfig | None = None) -> Frozen:
    """The encoder of a checkpoint of this library, built from the configuration inside it; `Towers` if of captions too.

    All weights come from the checkpoint: options that ask for pretrained weights are ignored.

    encoder_cfg  builds another architecture instead; the weights must fit it exactly, or InputError lists the keys
    """
    config: Any = current(saved["config"])
    state = saved["state_dict"]
    images, text = config["images"], config.get("text")
    encoder = architecture(encoder_cfg or config["encoder"], in_channels=images["channels"], image_size=images["size"])
    load_encoder(encoder, saved)
    normalize = Normalize(state["normalize.mean"].flatten(), state["normalize.std"].flatten())
    part = architecture(config["key"], _partial_=True) if text else None
    if getattr(part, "func", None) is not Second:  # no captions, or none that the run was trained on
        return Frozen(normalize, encoder)
    projector = architecture(config["projector"], in_features=encoder.num_features)
    key = complete(part, {**text, "dim": projector.num_features})
    load_encoder(projector, saved, prefix="projector.")
    load_encoder(key, saved, prefix="key.")
    return Towers(normalize, encoder, projector, key)


def from_weights(saved: Checkpoint, encoder_cfg: DictConfig | None, images: Images | ImageFiles) -> Frozen:
    """The encoder of a file of plain weights, which does not hold its architecture: `encoder_cfg` builds it.

    Pixels are normalised by the statistics of `images`, the training set of the evaluation.
    """
    if encoder_cfg is None:
        raise InputError("plain weights do not name their architecture: give encoder=...")
    encoder = architecture(encoder_cfg, in_channels=images.channels, image_size=images.size)
    load_encoder(encoder, saved)
    return Frozen(Normalize(*images.statistics()), encoder)


def architecture(node: Mapping[str, object], **facts: object) -> Any:
    """What the configuration `node` builds when it is called with `facts`, without reading or downloading weights."""

    def without_weights(part: object) -> object:
        if isinstance(part, Mapping):
            return {key: WITHOUT_WEIGHTS.get(key, without_weights(value)) for key, value in part.items()}
        return [without_weights(item) for item in part] if isinstance(part, list | ListConfig) else part

    return instantiate(without_weights(node), **facts)


def word_vectors(path: str | Path) -> tuple[tuple[str, ...], Tensor]:
    """The words [V] and vectors [V, D] of a run folder, which holds `VECTORS`, or of a file of `vectors`.

    Raises InputError for another file, a run without vectors, and a file that cannot be read.
    """
    path = Path(path).expanduser()
    if path.is_dir() and not (path / VECTORS).is_file():
        raise InputError(f"{path} has no {VECTORS}: it is no run of word embeddings, or has not ended yet")
    return load_vectors(path / VECTORS if path.is_dir() else path)
