"""Where the first weights of an encoder come from: a run, a file, torchvision, timm or Hugging Face."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torchvision import models

from contrast.encoders.weights import Checkpoint, load_encoder, read
from contrast.errors import InputError, named_errors, need
from contrast.network import look_for_the_hub

log = logging.getLogger(__name__)

Statistics = tuple[Sequence[float] | Tensor, Sequence[float] | Tensor]  # mean and std of pixels in 0..1, [C] each


class Weights(NamedTuple):
    """What a source of weights holds."""

    label: str
    contents: Checkpoint
    statistics: Statistics | None  # by which its pixels were normalised, where the source knows


def pretrained(encoder: nn.Module, source: str | Path | Weights, prefix: str | None = None) -> None:
    """Load the weights of `source` into `encoder`, and log a line that says what was taken and what passed over.

    source  a run folder; a file: a checkpoint, a state dict or .safetensors, of this library or another; or
            torchvision:NAME  a name of torchvision's, resnet50 (its best weights) or ResNet50_Weights.IMAGENET1K_V1
            timm:NAME         a model of timm, vit_small_patch16_224.dino
            hf:OWNER/NAME     the file model.safetensors or pytorch_model.bin of the repository; hf:OWNER/NAME:FILE
    prefix  as in `load_encoder`

    The mean and standard deviation by which the source's pixels were normalised become the attribute
    `pixel_statistics` of the encoder, where the source knows them. InputError as `load_encoder`, and where nothing can
    be downloaded.
    """
    weights = source if isinstance(source, Weights) else weights_of(source)
    if prefix is None and is_own(weights.contents):
        prefix = "encoder."
    line = load_encoder(encoder, weights.contents, prefix, weights.label)
    if weights.statistics is not None:
        encoder.pixel_statistics = weights.statistics  # type: ignore[assignment]
    whose = "the data set's" if weights.statistics is None else "the weights'"
    log.info("%s; pixels are normalised by %s mean and std", line, whose)


def weights_of(source: str | Path) -> Weights:
    """The weights that `source` names, as `pretrained` explains; files are read without running code in them."""
    kind, _, name = str(source).partition(":")
    if kind in SOURCES and name:
        with downloading(str(source)):
            return SOURCES[kind](name)
    file = checkpoint_file(source)
    contents = read(file)
    statistics = own_statistics(contents) if is_own(contents) else None
    for each in (entry for model in models.list_models(module=models) for entry in models.get_model_weights(model)):
        if each.url.endswith(f"/{file.name}"):  # a file as torchvision publishes it
            statistics = _of_transforms(each)
    return Weights(str(file), contents, statistics)


def checkpoint_file(path: str | Path) -> Path:
    """The checkpoint that `path` means: itself, or `checkpoints/last.ckpt` of a run folder."""
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    return path


def is_own(saved: Checkpoint) -> bool:
    """Whether this is a checkpoint of this library, which carries its configuration."""
    return isinstance(saved.get("config"), Mapping) and isinstance(saved.get("state_dict"), Mapping)


def own_statistics(saved: Checkpoint) -> Statistics | None:
    """The mean and std by which a checkpoint of this library says that pixels are normalised."""
    mean, std = (saved["state_dict"].get(f"normalize.{name}") for name in ("mean", "std"))
    return (mean.flatten(), std.flatten()) if isinstance(mean, Tensor) and isinstance(std, Tensor) else None


def statistics_of(encoder: nn.Module, images: "HasStatistics") -> Statistics:
    """The mean and std to normalise pixels by: those of the encoder's first weights, or else those of `images`."""
    own: Statistics | None = getattr(encoder, "pixel_statistics", None)
    return own if own is not None and len(own[0]) == images.channels else images.statistics()


def published(label: str) -> dict[str, str] | None:
    """The configuration of the encoder whose weights are torchvision:NAME or timm:NAME; None for others."""
    kind, _, name = label.partition(":")
    if kind == "timm":
        return {"_target_": "contrast.encoders.timm_model", "name": name}
    name = name.partition("_Weights")[0].lower()
    if kind == "torchvision" and name.startswith("vit_"):
        return {"_target_": "contrast.encoders.vit", "name": name}
    if kind == "torchvision" and "resne" in name:
        return {"_target_": "contrast.encoders.resnet", "name": name, "stem": "imagenet"}
    return None


def downloading(weights: str) -> AbstractContextManager[None]:
    """Turns whatever a download of the weights raises into an InputError: every library raises errors of its own."""
    return named_errors((Exception,), f"cannot get the weights {weights}")


class HasStatistics(Protocol):
    """A data set as far as it matters here."""

    @property
    def channels(self) -> int: ...

    def statistics(self) -> Statistics: ...


def _torchvision(name: str) -> Weights:
    try:
        chosen = models.get_weight(name) if "." in name else models.get_model_weights(name).DEFAULT
    except ValueError as error:
        known = "resnet50 or ResNet50_Weights.IMAGENET1K_V1"
        raise InputError(f"torchvision has no weights '{name}'; names are like {known}") from error
    return Weights(f"torchvision:{name}", chosen.get_state_dict(weights_only=True), _of_transforms(chosen))


def _of_transforms(chosen: models.WeightsEnum) -> Statistics | None:
    preset = chosen.transforms()
    return (preset.mean, preset.std) if hasattr(preset, "mean") and hasattr(preset, "std") else None


def _timm(name: str) -> Weights:
    need("timm", "timm", f"timm:{name}")
    import timm

    look_for_the_hub()
    net: Any = timm.create_model(name, pretrained=True, num_classes=0)
    return Weights(f"timm:{name}", net.state_dict(), (net.pretrained_cfg["mean"], net.pretrained_cfg["std"]))


def _hugging_face(name: str) -> Weights:
    need("huggingface_hub", "timm", f"hf:{name}")
    import huggingface_hub as hub

    repository, _, wanted = name.partition(":")
    look_for_the_hub()
    files = hub.list_repo_files(repository)
    file = next((each for each in ([wanted] if wanted else HF_FILES) if each in files), None)
    if file is None:
        raise InputError(f"hf:{repository} has no {wanted or ' or '.join(HF_FILES)}; give hf:{repository}:FILE")
    path = hub.hf_hub_download(repository, file)
    config = json.loads(Path(hub.hf_hub_download(repository, HF_CONFIG)).read_text()) if HF_CONFIG in files else {}
    config |= config.get("pretrained_cfg", {})  # where timm's repositories have it
    statistics = (config["mean"], config["std"]) if {"mean", "std"} <= set(config) else None
    return Weights(f"hf:{name}", read(Path(path)), statistics)


SOURCES: dict[str, Callable[[str], Weights]] = {"torchvision": _torchvision, "timm": _timm, "hf": _hugging_face}
HF_FILES, HF_CONFIG = ("model.safetensors", "pytorch_model.bin"), "config.json"
