"""Features of a frozen encoder, computed once and kept on disk."""

import hashlib
import json
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from contrast.atomic import replacing
from contrast.data.images.image_set import ImageFiles, Images
from contrast.data.loader import Batches
from contrast.errors import InputError


@contextmanager
def evaluating(encoder: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put a module into eval mode, and afterwards every submodule back into the mode that it had."""
    modes = {part: part.training for part in encoder.modules()} if isinstance(encoder, nn.Module) else {}
    try:
        if isinstance(encoder, nn.Module):
            encoder.eval()
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def features(
    encoder: Callable[[Tensor], Tensor],
    images: Images | ImageFiles,
    batch_size: int = 512,
    device: torch.device | str | None = None,
    desc: str = "features",
    workers: int = 0,
    progress: bool = True,
) -> Tensor:
    """Features of every image in order, [N, F] float32 on the CPU.

    encoder maps uint8 pixels [B, C, H, W] to [B, F]. It runs in eval mode without gradients; the training mode of
    each of its modules is restored. device: by default that of the encoder's parameters. Autocast is the
    caller's. A bar shows what takes longer than a second, unless progress is False. InputError for an empty set
    and for an encoder that does not return [B, F].
    """
    if len(images) == 0:
        raise InputError(f"{desc}: no images")
    if device is None:
        first = next(encoder.parameters(), None) if isinstance(encoder, nn.Module) else None
        device = torch.device("cpu") if first is None else first.device
    device = torch.device(device)
    batches = Batches(images, batch_size, seed=0, shuffle=False, device=device, workers=workers)
    rows: Tensor | None = None
    done = 0
    bar = tqdm(total=len(images), desc=desc, unit="image", delay=1, leave=False, disable=not progress)
    with evaluating(encoder), bar:
        for batch in batches:
            with torch.inference_mode():
                found = encoder(batch.pixels)
            if found.ndim != 2 or len(found) != len(batch.pixels):
                raise InputError(f"{desc}: {len(batch.pixels)} images gave {list(found.shape)}, not [B, F]")
            if rows is None:  # outside inference mode, so that a probe may train on it
                pinned = device.type == "cuda"  # the device does not wait for the copy
                rows = torch.empty(len(images), found.shape[1], dtype=torch.float32, pin_memory=pinned)
            rows[done : done + len(found)].copy_(found, non_blocking=True)
            done += len(found)
            bar.update(len(found))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if rows is None or done != len(images):
        raise InputError(f"{desc}: the loader gave {done} of {len(images)} images")
    return rows


def digest(*parts: object) -> str:
    """SHA-256, 32 hex digits, of tensors, modules (their state dict) and anything that JSON can hold."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, nn.Module):
            for name, value in sorted(part.state_dict().items()):
                sha.update(name.encode())
                _add_tensor(sha, value)
        elif isinstance(part, Tensor):
            _add_tensor(sha, part)
        else:
            sha.update(json.dumps(part, sort_keys=True).encode())
        sha.update(b"\0")
    return sha.hexdigest()[:32]


def cached_features(folder: str | Path, key: str, compute: Callable[[], Tensor]) -> Tensor:
    """The tensor kept in folder/<key>.safetensors, or compute(), which is then kept there.

    key: a digest of all that the tensor depends on (encoder, data set, settings). The file is written beside its
    place and moved there, so a reader never sees half of it; one that is damaged is named in a warning and built
    again.
    """
    path = Path(folder) / f"{key}.safetensors"
    if path.exists():
        try:
            return _load(path)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            warnings.warn(f"feature cache {path} is damaged ({error}): computed again", stacklevel=2)
    value = compute().detach().cpu().contiguous()
    with replacing(path) as temporary:
        save_file({"features": value}, temporary, metadata={"crc32": _crc32(value)})
    return value


def _load(path: Path) -> Tensor:
    with safe_open(path, framework="pt") as file:
        value = file.get_tensor("features")
        if (file.metadata() or {}).get("crc32") != _crc32(value):
            raise ValueError("checksum differs")
    return value


def _bytes(value: Tensor) -> memoryview:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _crc32(value: Tensor) -> str:
    return f"{zlib.crc32(_bytes(value)):08x}"


def _add_tensor(sha: "hashlib._Hash", value: Tensor) -> None:
    sha.update(f"{value.dtype}{list(value.shape)}".encode())
    sha.update(_bytes(value))
