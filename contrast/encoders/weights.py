"""Loading weights from a file into an encoder: either all of them fit, or an error lists what does not."""

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from contrast.errors import InputError

MAX_KEYS = 4  # of each kind in an error message


def load_encoder(encoder: nn.Module, source: str | Path | Mapping[str, object], prefix: str | None = None) -> None:
    """Load every parameter and buffer of `encoder`, in place, from `source`.

    source  a file (a Lightning checkpoint, a state dict saved by `torch.save`, or .safetensors) or its contents
    prefix  with which the encoder's keys start; keys that start otherwise belong to other modules and are ignored.
            None: "encoder." in a checkpoint (a mapping with the entry "state_dict"), "" in a plain state dict

    Raises InputError if the file is absent or damaged. If keys are missing or unexpected or have another shape, the
    InputError lists them and the encoder is unchanged. Pickled code is never run (`weights_only=True`).
    """
    saved = source if isinstance(source, Mapping) else read(Path(source))
    label = "the state dict" if isinstance(source, Mapping) else str(source)
    inner = saved.get("state_dict")
    if prefix is None:
        prefix = "encoder." if isinstance(inner, Mapping) else ""
    state = inner if isinstance(inner, Mapping) else saved
    selected = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    if not selected:
        first_parts = sorted({key.partition(".")[0] for key in state})
        raise InputError(f"{label} has no key that starts with '{prefix}'; its keys start with {listed(first_parts)}")
    weights = {key: value for key, value in selected.items() if isinstance(value, Tensor)}
    if len(weights) < len(selected):
        others = [key for key in selected if key not in weights]
        raise InputError(f"{label} is no state dict: not tensors are {listed(others)}")

    shapes = {key: list(value.shape) for key, value in encoder.state_dict().items()}
    given = {key: list(value.shape) for key, value in weights.items()}
    wrong = {
        "missing": [f"{key} {shape}" for key, shape in shapes.items() if key not in given],
        "unexpected": [f"{key} {shape}" for key, shape in given.items() if key not in shapes],
        "of another shape": [
            f"{key} {given[key]} for {shape}" for key, shape in shapes.items() if given.get(key, shape) != shape
        ],
    }
    if any(wrong.values()):
        counts = [f"{len(keys)} {kind}{': ' if keys else ''}{listed(keys)}" for kind, keys in wrong.items()]
        raise InputError(f"{label} does not fit the encoder ({len(shapes)} keys): {'; '.join(counts)}")
    encoder.load_state_dict(weights)


def read(path: Path) -> Mapping[str, Any]:
    """The contents of a file of weights, on the CPU."""
    if not path.is_file():
        raise InputError(f"no such file of weights: {path}")
    try:
        if path.suffix == ".safetensors":
            saved: object = load_file(path)
        else:
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can raise nearly any exception of pickle, zipfile or torch
        reason = (str(error).splitlines() or [""])[0]
        if isinstance(error, pickle.UnpicklingError):  # torch's text advises running the code that the file holds
            reason = "neither a checkpoint nor plain weights"
        raise InputError(f"cannot read weights from {path}: {type(error).__name__}: {reason}") from error
    if not isinstance(saved, Mapping) or not all(isinstance(key, str) for key in saved):
        raise InputError(f"{path} holds no state dict but {type(saved).__name__}")
    return saved


def listed(names: Iterable[str]) -> str:
    """The first names, separated by commas, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - MAX_KEYS} more" if len(names) > MAX_KEYS else ""
    return ", ".join(names[:MAX_KEYS]) + more
