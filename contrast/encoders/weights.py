"""Loading weights into an encoder: either all of them fit, or an error lists what does not.

Files of other projects hold more than an encoder, under prefixes of their own. The prefix under which the encoder's
keys are found is taken off, a classifier behind the encoder is passed over, and the returned line names both.
"""

import pickle
import zipfile
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from contrast.encoders.archive import check_archive, check_sizes
from contrast.errors import InputError, first_few, one_line

Checkpoint = Mapping[str, Any]  # the contents of a file of torch
# What follows an encoder in files of classifiers and of other methods; passed over if the encoder has no such part
HEADS = ("fc.", "head.", "heads.", "classifier.", "projector.", "projection_head.", "predictor.")
# Parts of the names of momentum copies. Where an encoder and its copy are in one file, the encoder is taken
COPIES = ("encoder_k", "key_encoder", "teacher", "momentum", "ema", "target")
STEMS = {(7, 7): "imagenet", (3, 3): "cifar"}  # by the kernel of a ResNet's first layer
OUTER = ("", "state_dict.", "model.", "model_state_dict.")  # names of a mapping around a state dict
WRAPPERS = (*OUTER[1:], "module.", "_orig_mod.")
# which files from before torch 0.4.1 lack, torchvision's among them; no output needs it
COUNTER = "num_batches_tracked"


def load_encoder(
    encoder: nn.Module, source: str | Path | Mapping[str, object], prefix: str | None = None, label: str | None = None
) -> str:
    """Load every parameter and buffer of `encoder`, in place, from `source`; returns a line that says what was taken.

    source  a file (a checkpoint, a state dict saved by `torch.save`, or .safetensors) or its contents; state dicts may
            be nested in it
    prefix  with which the encoder's keys start; keys that start otherwise belong to other modules and are ignored.
            None: the prefix under which most keys of the encoder are found; a momentum copy's only if there is no other
    label   of the source in messages

    Raises InputError if the file is absent or damaged, and if two prefixes fit equally well. If keys are missing or
    unexpected or have another shape, the InputError lists them and the encoder is unchanged. Pickled code is never run
    (`weights_only=True`).
    """
    saved = source if isinstance(source, Mapping) else read(Path(source))
    label = label or ("the state dict" if isinstance(source, Mapping) else str(source))
    state = dict(_tensors(saved))
    if not state:
        raise InputError(f"{label} is no state dict: not tensors are {first_few(saved)}")
    own = encoder.state_dict()
    if not own:
        return f"{label}: the encoder has no weights"
    start = _prefix(own, state, prefix, label)
    given = {key[len(start) :]: value for key, value in state.items() if key.startswith(start)}
    heads = [key for key in given if key.startswith(HEADS) and key not in own]
    given = {key: value for key, value in given.items() if key not in heads}
    given |= {key: value for key, value in own.items() if key.endswith(COUNTER) and key not in given}

    wrong = {
        "missing": [f"{key} {list(value.shape)}" for key, value in own.items() if key not in given],
        "unexpected": [f"{key} {list(value.shape)}" for key, value in given.items() if key not in own],
        "of another shape": [
            f"{key} {list(given[key].shape)} for {list(value.shape)}"
            for key, value in own.items()
            if key in given and given[key].shape != value.shape
        ],
    }
    if any(wrong.values()):
        counts = [f"{len(keys)} {kind}{': ' if keys else ''}{first_few(keys)}" for kind, keys in wrong.items()]
        first = [state["conv1.weight"].shape[2:] for state in (own, given) if "conv1.weight" in state]
        stem = STEMS.get(tuple(first[-1])) if len({*first}) > 1 else None
        cure = f"; encoder.stem={stem} has the first layer of these weights" if stem else ""
        raise InputError(f"{label} does not fit the encoder ({len(own)} keys): {'; '.join(counts)}{cure}")
    encoder.load_state_dict(given)
    others = Counter(key.partition(".")[0] + "." for key in heads)
    others.update(_first_parts(key for key in state if not key.startswith(start)))
    passed = first_few(f"{name} ({count})" for name, count in others.items())
    under = f" under '{start}'" if start else ""
    return f"{label}: {len(own)} tensors{under} are the encoder's" + (f"; passed over: {passed}" if passed else "")


def read(path: Path) -> Checkpoint:
    """The contents of a file of weights, on the CPU."""
    if not path.is_file():
        raise InputError(f"no such file of weights: {path}")
    try:
        if path.suffix == ".safetensors":
            saved: object = load_file(path)
        else:
            check_archive(path)
            with torch.serialization.safe_globals([Namespace]):  # which many scripts keep their options in
                saved = torch.load(path, map_location="cpu", weights_only=True)
        check_sizes(saved, path)
    except InputError:
        raise
    except Exception as error:  # damaged bytes can raise nearly any exception of pickle, zipfile or torch
        size = f"{path.stat().st_size:,} bytes"
        raise InputError(f"cannot read weights from {path} of {size}: {_what_is_wrong(path, error)}") from error
    if not isinstance(saved, Mapping) or not all(isinstance(key, str) for key in saved):
        raise InputError(f"{path} holds no state dict but {type(saved).__name__}")
    return saved


def _what_is_wrong(path: Path, error: Exception) -> str:
    """Why a file of weights cannot be read. torch itself says so at length, and advises running the file's code."""
    is_zip = False
    with suppress(OSError), path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    cut = isinstance(error, EOFError) or any(text in str(error) for text in ("unexpected EOF", "not fully covered"))
    if cut or (is_zip and not zipfile.is_zipfile(path)):  # the list of a zip's parts is its end
        return "it ends too early, as a file does whose download or copy was interrupted"
    if isinstance(error, pickle.UnpicklingError):
        return "neither a checkpoint nor plain weights; torch.save(net.state_dict(), FILE) saves a whole module"
    first = one_line(error).partition(". ")[0]
    return f"{type(error).__name__}: {first}"


def _tensors(saved: Mapping[str, object], start: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested mappings, with its keys joined by dots: state_dict.module.conv1.weight."""
    for key, value in saved.items():
        if isinstance(value, Tensor):
            yield f"{start}{key}", value
        elif isinstance(value, Mapping):
            yield from _tensors(value, f"{start}{key}.")


def _prefix(own: Mapping[str, Tensor], state: Mapping[str, Tensor], wanted: str | None, label: str) -> str:
    """What stands before the keys of the encoder in `state`."""
    if wanted is not None:
        starts = [outer + wanted for outer in OUTER if any(key.startswith(outer + wanted) for key in state)]
        if not starts:
            kinds = first_few(_first_parts(state))
            raise InputError(f"{label} has no key that starts with '{wanted}'; its keys start with {kinds}")
        return starts[0]
    counts: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        ends = (".".join(parts[i:]) for i in range(len(parts)))
        counts.update(key[: len(key) - len(end)] for end in ends if end in own)
    best = [start for start, n in counts.items() if n == max(counts.values())]
    best = [start for start in best if not any(copy in start for copy in COPIES)] or best
    if len(best) > 1:
        raise InputError(f"{label} has {len(best)} encoders, choose one by prefix=: {first_few(sorted(best))}")
    return best[0] if best else ""


def _first_parts(keys: Iterable[str]) -> Counter[str]:
    """How many keys start with each name; names of wrappers and of mappings around a state dict are none."""
    parts: Counter[str] = Counter()
    for key in sorted(keys):
        while key.startswith(WRAPPERS) and key not in WRAPPERS:
            key = key.partition(".")[2]
        parts[key.partition(".")[0]] += 1
    return parts
