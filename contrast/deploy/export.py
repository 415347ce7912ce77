"""Files of an encoder for other programs: safetensors, torch.export, ONNX.

N images, C channels, S x S pixels, F features. Exported programs take uint8 pixels [N, C, S, S] with N >= 1 and
normalise them.
"""

import json
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torchvision.models.resnet import ResNet

import contrast
from contrast.atomic import made, replacing, rewrite
from contrast.data.store import save_tensors
from contrast.deploy.load import CONFIG, WEIGHTS, ImageEncoder
from contrast.errors import InputError, need

PROGRAM, ONNX = "encoder.pt2", "encoder.onnx"
LARGEST_ERROR = 1e-3  # between an exported program and PyTorch, as a share of the largest feature
KEPT = ("name", "encoder", "projector", "key", "images", "text")  # of a run's configuration, to rebuild the encoder


def export(encoder: ImageEncoder, form: str, folder: Path) -> list[str]:
    """Writes the encoder to `folder`; returns lines for the user that say what was written and how to use it.

    form  safetensors: encoder.safetensors, weights under the names of torchvision or timm
          torch:       encoder.pt2, for `torch.export.load`
          onnx:        encoder.onnx; checked against PyTorch by onnxruntime

    config.json is written as well. Raises InputError for a missing package, and for an encoder that cannot be exported.
    """
    with made(folder):
        lines = FORMATS[form](encoder, folder)
        save_config(encoder, folder)
    return lines


def save_config(encoder: ImageEncoder, folder: Path) -> None:
    """Writes config.json: what `contrast.load` needs to rebuild the encoder, and what other programs need."""
    normalize = encoder.model.normalize
    config = {
        "contrast_version": contrast.__version__,
        "image_size": encoder.image_size,
        "channels": encoder.channels,
        "range": encoder.range,
        "fast_jpeg": encoder.fast_jpeg,
        "num_features": encoder.num_features,
        "mean": normalize.mean.flatten().tolist(),
        "std": normalize.std.flatten().tolist(),
        **{key: encoder.config[key] for key in KEPT if encoder.config.get(key) is not None},
    }
    rewrite(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def save_weights(encoder: ImageEncoder, folder: Path) -> list[str]:
    state = {key: value.contiguous().clone() for key, value in encoder.backbone.state_dict().items()}
    with replacing(folder / WEIGHTS) as file:
        save_tensors(state, file)
    lines = [f"{folder / WEIGHTS}: {len(state)} tensors; contrast.load({str(folder)!r}) reads them"]
    return lines + ([hint] if (hint := torchvision_hint(encoder)) else [])


def torchvision_hint(encoder: ImageEncoder) -> str:
    """How to change torchvision's ResNet so that these weights fit; empty if they fit already."""
    net = encoder.backbone
    if not isinstance(net, ResNet) or (net.conv1.kernel_size == (7, 7) and net.conv1.in_channels == 3):
        return ""
    if net.conv1.kernel_size == (7, 7):
        conv = f"torch.nn.Conv2d({net.conv1.in_channels}, 64, 7, stride=2, padding=3, bias=False)"
        return f"its first layer takes {net.conv1.in_channels} channels; for torchvision's ResNet: net.conv1 = {conv}"
    conv = f"torch.nn.Conv2d({net.conv1.in_channels}, 64, 3, padding=1, bias=False)"
    return (
        "its stem is that for small images; before torchvision's ResNet takes the weights: "
        f"net.conv1 = {conv}; net.maxpool = torch.nn.Identity()"
    )


def save_program(encoder: ImageEncoder, folder: Path) -> list[str]:
    path, batch = folder / PROGRAM, torch.export.Dim("batch", min=1)
    program = _exported(lambda: torch.export.export(encoder, (_pixels(encoder, 2),), dynamic_shapes=({0: batch},)))
    saved = BytesIO()  # torch ends the process if a file of its own cannot be written to the end
    _exported(lambda: torch.export.save(program, saved))
    saved.seek(0)
    difference = _checked(encoder, _exported(lambda: torch.export.load(saved).module()))
    with replacing(path) as file:
        file.write_bytes(saved.getbuffer())
    return [f"{path}: a program of torch.export; {difference}"]


def save_onnx(encoder: ImageEncoder, folder: Path) -> list[str]:
    for module in ("onnxruntime", "onnxscript"):  # torch needs the second, but does not say how to install it
        need(module, "export", "format=onnx")
    import onnxruntime

    path = folder / ONNX
    program = _exported(
        lambda: torch.onnx.export(
            encoder,
            (_pixels(encoder, 2),),
            dynamo=True,
            verbose=False,
            input_names=["pixels"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )
    )
    assert program is not None  # the older exporter returns None
    with replacing(path) as file:
        program.save(file, external_data=False)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

        def run(pixels: Tensor) -> Tensor:
            return torch.from_numpy(np.asarray(session.run(["features"], {"pixels": pixels.numpy()})[0]))

        difference = _checked(encoder, run)
    shape = f"uint8 [N, {encoder.channels}, {encoder.image_size}, {encoder.image_size}]"
    return [f"{path}: `pixels` {shape} -> `features` [N, {encoder.num_features}]; {difference}"]


FORMATS = {"safetensors": save_weights, "torch": save_program, "onnx": save_onnx}


Program = TypeVar("Program")


def _pixels(encoder: ImageEncoder, count: int) -> Tensor:
    size = (count, encoder.channels, encoder.image_size, encoder.image_size)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(count))


def _exported(make: Callable[[], Program]) -> Program:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters warn about their own code
            return make()
    except Exception as error:  # the exporters raise nearly anything
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"torch cannot export this encoder: {reason}") from error


def _checked(encoder: ImageEncoder, program: Callable[[Tensor], Tensor]) -> str:
    """Compares the program with PyTorch on batches of 1, 3 and 8 images; it was exported with 2.

    Returns a text with the largest difference. Raises InputError if it exceeds `LARGEST_ERROR`.
    """
    with torch.no_grad():
        pairs = [(encoder(pixels), program(pixels)) for pixels in (_pixels(encoder, count) for count in (1, 3, 8))]
    largest = max(float((ours - theirs).abs().max()) for ours, theirs in pairs)
    scale = max(float(ours.abs().max()) for ours, _ in pairs)
    if not largest <= LARGEST_ERROR * scale:
        raise InputError(f"the program differs from PyTorch by {largest:.2g}, its largest feature is {scale:.2g}")
    return f"largest difference from PyTorch {largest:.1e}, of features up to {scale:.2g}"
