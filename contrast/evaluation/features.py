"""Features of an encoder that is not trained any more: computed once, checked and cached.

N images, B of a batch, C channels, H x W pixels, F features.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from numpy.typing import ArrayLike
from omegaconf import DictConfig
from torch import Tensor, nn
from tqdm import tqdm

from contrast.candidates import as_ids
from contrast.config.trust import Config
from contrast.data.images.image_set import ImageFiles, Images
from contrast.data.loader import Batches
from contrast.data.store import cached, digest
from contrast.errors import InputError

Labelled = tuple[Tensor, Tensor | ArrayLike]  # features [N, F], labels [N]


@dataclass(frozen=True, eq=False)
class EvaluationData:
    """What a protocol works on: an encoder, images to learn from (`train`) and images to measure on (`test`).

    encoder  uint8 pixels [B, C, H, W] -> features [B, F]
    cache    the folder that keeps the features of an encoder that is a module; None: they are kept in memory only
    trainer  options of Lightning's trainer, for a protocol that trains the encoder
    seed     of what a protocol draws at random
    folder   where a protocol may leave files; None: nowhere
    config   of the run that trained the encoder, for a checkpoint that a protocol writes
    details  what a protocol adds here is written to metrics.json, too: accuracies by class, a confusion matrix
    """

    encoder: Callable[[Tensor], Tensor]
    train: Images | ImageFiles
    test: Images | ImageFiles
    device: torch.device
    cache: Path | None = None
    trainer: DictConfig | None = None
    batch_size: int = 512
    workers: int = 0
    seed: int = 0
    folder: Path | None = None
    config: Config = field(default_factory=dict)
    details: dict[str, object] = field(default_factory=dict)

    @cached_property
    def train_features(self) -> Tensor:
        return self._features(self.train, "training features")  # [N, F]

    @cached_property
    def test_features(self) -> Tensor:
        return self._features(self.test, "test features")  # [N, F]

    def _features(self, images: Images | ImageFiles, desc: str) -> Tensor:
        def compute() -> dict[str, Tensor]:
            if isinstance(self.encoder, nn.Module):
                self.encoder.to(self.device)
            return {"features": features(self.encoder, images, self.batch_size, self.device, desc, self.workers)}

        if self.cache is None:
            return compute()["features"]
        key = digest(repr(self.encoder), self.encoder, content(images))  # two architectures may have equal weights
        return cached(self.cache, key, compute)["features"]


def content(images: Images | ImageFiles) -> Tensor | list[object]:
    """What features of the images depend on: the pixels; of files their names, sizes and times, and their decoding."""
    if isinstance(images, Images):
        return images.pixels
    return [images.stamp(), images.decoding, images.on_error]


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
    """Features of every image in order, [N, F] float32 on the CPU; `batch_features` of their pixels.

    device: by default that of the encoder's parameters. InputError for an empty set.
    """
    device = torch.device(device or device_of(encoder))
    batches = Batches(images, batch_size, seed=0, shuffle=False, device=device, workers=workers)
    return batch_features(encoder, (batch.pixels for batch in batches), len(images), device, desc, progress)


def device_of(encoder: Callable[[Tensor], Tensor]) -> torch.device:
    """Where the parameters of an encoder are; the CPU, if it has none."""
    parameters = encoder.parameters() if isinstance(encoder, nn.Module) else ()
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


def batch_features(
    encoder: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    count: int,
    device: torch.device,
    desc: str = "features",
    progress: bool = True,
) -> Tensor:
    """Features of batches of images in order, [N, F] float32 on the CPU. N is `count`.

    encoder maps uint8 pixels [B, C, H, W] to [B, F]. It runs in eval mode without gradients, and each of its modules
    then returns to the mode that it had. The caller decides on autocast. A progress bar appears after a second.
    InputError for an empty set and for an encoder that does not return [B, F].
    """
    if count == 0:
        raise InputError(f"{desc}: there is nothing to embed")
    rows, done = torch.empty(0), 0
    bar = tqdm(total=count, desc=desc, unit="image", delay=1, leave=False, disable=not progress)
    with evaluating(encoder), bar:
        for pixels in batches:
            with torch.inference_mode():
                result = encoder(pixels.to(device))
            if result.ndim != 2 or len(result) != len(pixels):
                raise InputError(f"{desc}: {len(pixels)} images gave {list(result.shape)}, not [B, F]")
            if done == 0:  # outside inference mode, so that a probe may train on it
                pinned = device.type == "cuda"  # the device does not wait for the copy
                rows = torch.empty(count, result.shape[1], dtype=torch.float32, pin_memory=pinned)
            rows[done : done + len(result)].copy_(result, non_blocking=True)
            done += len(result)
            bar.update(len(result))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    assert done == count
    return rows


def with_float64(device: torch.device | str) -> torch.device:
    """`device`, or the CPU in place of Apple's MPS, which has no float64."""
    return torch.device("cpu" if torch.device(device).type == "mps" else device)


def labelled_sets(
    what: str, train: Labelled, test: Labelled, device: torch.device | str | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """train [N, F], its labels [N], test [M, F], its labels [M], on one device, and the number of classes.

    device: by default that of the training features. Raises InputError as `check_labelled`, and if their F differ.
    """
    fit, held = (features.to(device or train[0].device) for features, _ in (train, test))
    fit_labels = check_labelled(fit, train[1], f"{what}, training set")
    held_labels = check_labelled(held, test[1], f"{what}, test set", fit.shape[1])
    return fit, fit_labels, held, held_labels, int(torch.cat([fit_labels, held_labels]).max()) + 1


def check_labelled(features: Tensor, labels: Tensor | ArrayLike, what: str, width: int | None = None) -> Tensor:
    """The labels [N] as int64, on the device of the features [N, F]. Error messages begin with `what`.

    Raises InputError unless the features are finite, F is `width`, if that is given, and the labels are class numbers
    from 0 in any integer type, or whole floats. A row without a label (-1) is refused: select the labelled rows first.
    """
    labels = as_ids(f"{what}: labels", labels).to(features.device)
    shapes = list(features.shape), list(labels.shape)
    if features.ndim != 2 or labels.shape != features.shape[:1] or len(labels) == 0:
        raise InputError(
            f"{what}: expected features [N, F] and labels [N] of 1 row or more, got {shapes[0]} and {shapes[1]}"
        )
    unlabelled = int((labels < 0).sum())
    if unlabelled:
        raise InputError(f"{what}: {unlabelled} of {len(labels)} rows have no label (-1)")
    check_finite(features, what, width=width)
    return labels


def check_finite(values: Tensor, what: str, rows: str = "rows", width: int | None = None) -> None:
    """InputError for NaN or infinity in values [N, F], and for another F than `width`, if that is given."""
    if width is not None and values.shape[1:] != (width,):
        raise InputError(f"{what}: features {list(values.shape)} do not fit training features [N, {width}]")
    broken = int((~torch.isfinite(values).all(dim=1)).sum())
    if broken:
        raise InputError(f"{what}: {broken} of {len(values)} {rows} are not finite")
