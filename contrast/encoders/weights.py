"""Weights from a file into an encoder: all of them, or an error that lists what does not match."""

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from contrast.errors import InputError

SHOWN = 4  # keys of each kind in an error message


def load_encoder(encoder: nn.Module, source: str | Path | Mapping[str, Any], prefix: str | None = None) -> None:
    """Load every parameter and buffer of `encoder`, in place, from `source`.

    source  a Lightning checkpoint, a state dict saved by `torch.save` or a .safetensors file, or what one holds
    prefix  the encoder's keys start with it; other keys belong to something else and are left out.
            None: "encoder." in a checkpoint (a mapping with the entry "state_dict"), "" in a plain state dict

    Raises InputError if the file is absent or damaged, and with the missing, unexpected and misshapen keys if the
    match is not exact; the encoder is then unchanged. Pickled code is never run (`weights_only=True`).
    """
    saved = source if isinstance(source, Mapping) else read(Path(source))
    label = "the state dict" if isinstance(source, Mapping) else str(source)
    inner = saved.get("state_dict")
    if prefix is None:
        prefix = "encoder." if isinstance(inner, Mapping) else ""
    state = inner if isinstance(inner, Mapping) else saved
    found = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    if not found:
        tops = sorted({key.partition(".")[0] for key in state})
        raise InputError(f"{label} has no key that starts with '{prefix}'; its keys start with {listed(tops)}")
    alien = [key for key, value in found.items() if not isinstance(value, Tensor)]
    if alien:
        raise InputError(f"{label} is no state dict: not tensors are {listed(alien)}")

    own = encoder.state_dict()
    missing = [f"{key} {list(own[key].shape)}" for key in own if key not in found]
    unexpected = [f"{key} {list(found[key].shape)}" for key in found if key not in own]
    misshapen = [
        f"{key} {list(found[key].shape)} for {list(own[key].shape)}"
        for key in own
        if key in found and found[key].shape != own[key].shape
    ]
    if missing or unexpected or misshapen:
        raise InputError(
            f"{label} does not fit the encoder ({len(own)} keys): "
            f"{len(missing)} missing{': ' if missing else ''}{listed(missing)}; "
            f"{len(unexpected)} unexpected{': ' if unexpected else ''}{listed(unexpected)}; "
            f"{len(misshapen)} of another shape{': ' if misshapen else ''}{listed(misshapen)}"
        )
    encoder.load_state_dict(found)


def read(path: Path) -> Mapping[str, Any]:
    """What a file of weights holds, on the CPU."""
    if not path.is_file():
        raise InputError(f"no such file of weights: {path}")
    try:
        if path.suffix == ".safetensors":
            saved = load_file(path)
        else:
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # damaged bytes surface as nearly any exception, of pickle, zipfile or torch
        reason = (str(error).splitlines() or [""])[0]
        if isinstance(error, pickle.UnpicklingError):  # torch's text advises to run whatever code the file holds
            reason = "neither a checkpoint nor plain weights"
        raise InputError(f"cannot read weights from {path}: {type(error).__name__}: {reason}") from error
    if not isinstance(saved, Mapping) or not all(isinstance(key, str) for key in saved):
        raise InputError(f"{path} holds no state dict but {type(saved).__name__}")
    return saved


def listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
