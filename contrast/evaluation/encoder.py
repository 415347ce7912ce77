"""A trained encoder from a checkpoint of this library or a file of plain weights; word vectors from a run or a file."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra.utils import instantiate
from omegaconf import ListConfig
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from contrast.config.facts import complete
from contrast.config.trust import Config, Trust, from_file
from contrast.data.images.image_set import ImageFiles, Images
from contrast.data.text.vectors import SAFE, file_format, load_vectors, tensors_of
from contrast.encoders.normalize import Normalize
from contrast.encoders.pretrained import Weights, is_own, own_statistics, pretrained, published, statistics_of
from contrast.encoders.subwords import Subwords
from contrast.encoders.weights import Checkpoint, load_encoder
from contrast.errors import InputError, one_line
from contrast.keys import Second

T = TypeVar("T")
Part = TypeVar("Part", bound=nn.Module)
VECTORS = "vectors.safetensors"  # in the folder of a run that learned words
# Options of timm, transformers and torchvision that read or download weights -> the value that does not
WITHOUT_WEIGHTS = {"pretrained": False, "checkpoint_path": "", "weights": None}
# Functions of torch that allocate a tensor of the size that their arguments give
MAKERS = {
    *(torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones, torch.rand, torch.randn),
    *(torch.randint, torch.randperm, torch.zeros),
}


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


def from_checkpoint(saved: Checkpoint, encoder_cfg: Config | None = None, trust: Trust = False) -> Frozen:
    """The encoder of a checkpoint of this library, built from the configuration inside it; `Towers` if of captions too.

    All weights come from the checkpoint: options that ask for pretrained weights are ignored.

    encoder_cfg  builds another architecture instead; the weights must fit it exactly, or InputError lists the keys
    trust        what the configuration may call besides the parts of this library: see `contrast.config.trust`
    """
    parts = ["images", *([] if encoder_cfg else ["encoder"])]
    parts += ["text", "key", "projector"] if saved["config"].get("text") else []
    config = from_file(
        {name: saved["config"].get(name) for name in parts}, "the checkpoint", trust, ignored=WITHOUT_WEIGHTS
    )
    statistics, text = own_statistics(saved), config.get("text")
    if any(not isinstance(config[name], Mapping) for name in parts if name != "text" or text):
        raise InputError(f"the checkpoint does not hold what an encoder is built from: {', '.join(parts)}")
    if statistics is None:
        raise InputError("the checkpoint does not say how images are normalised")
    facts = {"in_channels": config["images"].get("channels"), "image_size": config["images"].get("size")}
    encoder = loaded(lambda: architecture(encoder_cfg or config["encoder"], **facts), saved, "encoder.")
    normalize = Normalize(*statistics)
    part = architecture(config["key"], _partial_=True) if text else None
    if getattr(part, "func", None) is not Second:  # no captions, or none that the run was trained on
        return Frozen(normalize, encoder)
    projector = loaded(lambda: architecture(config["projector"], in_features=encoder.num_features), saved, "projector.")
    dim = projector.num_features
    facts = {**config["text"], "dim": dim}
    key = loaded(lambda: complete(architecture(config["key"], _partial_=True), facts), saved, "key.")
    return Towers(normalize, encoder, projector, key)


def loaded(make: Callable[[], Part], saved: Checkpoint, prefix: str) -> Part:
    """What `make` builds, with its weights out of the checkpoint.

    It is built without memory first (torch's meta device), so that a checkpoint whose weights do not fit the sizes
    that it claims is refused before these are allocated.
    """
    state = [each for each in saved["state_dict"].values() if isinstance(each, Tensor)]
    # far more than the weights, because a constructor may build parts that it does not keep
    most = 20 * sum(each.numel() * each.element_size() for each in state) + 2**30
    sketch = None
    # an architecture may need values while it is built
    with suppress(Exception), torch.device("meta"), Bounded(None):
        sketch = make()
    if isinstance(sketch, nn.Module):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that copying to the meta device does nothing
            load_encoder(sketch, saved, prefix)
    try:
        with Bounded(most):
            net = make()
    except InputError:
        raise
    except Exception as error:  # whatever the values of a configuration make a constructor raise
        cause = error.__cause__ or error
        says = str(cause) if isinstance(cause, InputError) else f"it cannot be built: {one_line(cause)}"
        raise InputError(f"{prefix.rstrip('.')} of the checkpoint: {says}") from error
    if not isinstance(net, nn.Module):
        raise InputError(f"{prefix.rstrip('.')} of the checkpoint is no network but {type(net).__name__}")
    load_encoder(net, saved, prefix)
    return net


class Bounded(TorchFunctionMode):
    """InputError if tensors that are made take more than `most` bytes in all.

    None: they take no memory, for they are made on the meta device, whatever the device that a call names.
    """

    def __init__(self, most: int | None) -> None:
        super().__init__()
        self.most, self.made = most, 0

    def __torch_function__(
        self,
        func: Callable[..., T],
        types: object,
        args: Iterable[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> T:
        kwargs = kwargs or {}
        if func not in MAKERS or str(kwargs.get("device")) == "meta" or kwargs.get("out") is not None:
            return func(*args, **kwargs)
        sketch = func(*args, **{**kwargs, "device": "meta"})
        if self.most is None or not isinstance(sketch, Tensor):
            return sketch
        self.made += sketch.numel() * sketch.element_size()
        if self.made > self.most:
            raise InputError(f"it asks for more than {self.most / 1e9:.1f} GB, much more than its weights need")
        return func(*args, **kwargs)


def from_source(
    weights: Weights,
    encoder_cfg: Config | None,
    images: Images | ImageFiles,
    prefix: str | None = None,
    size: int | None = None,
) -> Frozen:
    """The encoder of a checkpoint of this library, or of plain weights, which `encoder_cfg` builds for `images`.

    Names of torchvision and timm determine the architecture, other plain weights do not. Pixels are normalised as in
    the training of the weights; where this is not known, by the statistics of `images`.

    prefix  of the encoder's keys in plain weights, as in `load_encoder`
    size    pixels a side of the encoder's input, where this is not the size of `images`
    """
    if is_own(weights.contents):
        return from_checkpoint(weights.contents, encoder_cfg)
    encoder_cfg = encoder_cfg or published(weights.label)
    if encoder_cfg is None:
        raise InputError("plain weights do not name their architecture: give encoder=...")
    encoder = architecture(encoder_cfg, in_channels=images.channels, image_size=size or images.size)
    pretrained(encoder, weights, prefix)
    return Frozen(Normalize(*statistics_of(encoder, images)), encoder)


def architecture(node: Mapping[str, object], **facts: object) -> Any:
    """What the configuration `node` builds when it is called with `facts`, without reading or downloading weights."""
    return instantiate(without_weights(node), **facts)


def without_weights(part: object) -> object:
    """The configuration `part` as plain containers, without options that read or download weights."""
    if isinstance(part, Mapping):
        return {key: WITHOUT_WEIGHTS.get(key, without_weights(value)) for key, value in part.items()}
    return [without_weights(item) for item in part] if isinstance(part, list | ListConfig) else part


def word_vectors(path: str | Path) -> tuple[tuple[str, ...], Tensor]:
    """The words [V] and vectors [V, D] of a run folder, which holds `VECTORS`, or of a file of `vectors`.

    Raises InputError for another file, a run without vectors, and a file that cannot be read.
    """
    path = Path(path).expanduser()
    if path.is_dir() and not (path / VECTORS).is_file():
        raise InputError(f"{path} has no {VECTORS}: it is no run of word embeddings, or has not ended yet")
    return load_vectors(path / VECTORS if path.is_dir() else path)


def subwords_of(path: str | Path) -> Subwords | None:
    """The n-grams saved beside the word vectors in a run folder or a file; None if it has none."""
    path = Path(path).expanduser()
    path = path / VECTORS if path.is_dir() else path
    tensors = tensors_of(path, "subword") if file_format(path) in SAFE else {}
    return Subwords.of(tensors) if tensors else None
