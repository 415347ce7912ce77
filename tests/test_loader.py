"""Batches: their order, their ranks, and their position across an interrupted Lightning run."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from contrast.data.images.image_set import Batch, ImageFiles, Images
from contrast.data.loader import Batches
from contrast.errors import InputError
from contrast.training.data import PretrainData


def numbered(count: int) -> Images:
    """Image i has the value i everywhere and the label i % 3."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return Images(pixels, torch.arange(count) % 3, ("a", "b", "c"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ImageFiles:
    """The same 22 images, as files."""
    root = tmp_path_factory.mktemp("numbered")
    names = np.array([f"{i:02d}.png" for i in range(22)])
    for i, name in enumerate(names):
        Image.fromarray(np.full((2, 2), i, dtype=np.uint8)).save(root / name)
    return ImageFiles(root, names, torch.arange(22) % 3, ("a", "b", "c"), size=2, channels=1)


def test_shuffled_epoch_is_a_permutation_without_the_partial_batch():
    batches = Batches(numbered(22), 5, seed=3)
    first, second = [torch.cat([b.index for b in batches]) for _ in range(2)]
    assert len(batches) == 4
    assert len(first) == 20
    assert len(set(first.tolist())) == 20
    assert not torch.equal(first, second)
    assert torch.equal(first, batches.order(0)[:20])
    assert torch.equal(second, batches.order(1)[:20])
    assert not torch.equal(batches.order(0), Batches(numbered(22), 5, seed=4).order(0))


def test_batch_holds_the_pixels_and_labels_of_its_rows():
    for batch in Batches(numbered(22), 5, seed=0):
        assert isinstance(batch, Batch)
        assert batch.pixels.dtype == torch.uint8
        assert torch.equal(batch.pixels[:, 0, 1, 1].long(), batch.index)
        assert torch.equal(batch.labels, batch.index % 3)


def test_unshuffled_keeps_order_and_the_partial_batch():
    batches = Batches(numbered(22), 5, seed=0, shuffle=False)
    for _ in range(2):
        assert [b.index.tolist() for b in batches][-1] == [20, 21]
        assert torch.cat([b.index for b in batches]).tolist() == list(range(22))
    assert len(batches) == 5
    assert [len(b.index) for b in Batches(numbered(3), 5, seed=0, shuffle=False)] == [3]


@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_the_batch_of_one_process(shuffle: bool):
    whole = [b.index for b in Batches(numbered(22), 6, seed=1, shuffle=shuffle)]
    parts = [list(Batches(numbered(22), 6, 1, rank, 3, shuffle)) for rank in range(3)]
    assert len(whole) == (3 if shuffle else 4)
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[step].index for part in parts]), batch)
        if len(batch) == 6:
            assert [len(part[step].index) for part in parts] == [2, 2, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_files_come_in_the_order_of_memory(files: ImageFiles, workers: int):
    expected, found = Batches(numbered(22), 4, seed=5), Batches(files, 4, seed=5, workers=workers)
    for _ in range(2):
        for a, b in zip(expected, found, strict=True):
            assert torch.equal(a.pixels, b.pixels)
            assert torch.equal(a.labels, b.labels)
            assert torch.equal(a.index, b.index)


class WorkerNumbers(ImageFiles):
    """The process that read an image is its pixels."""

    def pixels(self, row: int) -> np.ndarray:
        return np.array([os.getpid() >> shift & 255 for shift in (0, 8, 16, 24)], dtype=np.uint8).reshape(4, 1, 1)


def test_workers_live_as_long_as_the_run() -> None:
    files = WorkerNumbers(Path(), ["a"] * 22, torch.arange(22) % 3, ("a", "b", "c"), size=1, channels=4)
    batches = Batches(files, 4, seed=0, workers=2)
    first, second, third = [{tuple(b.pixels[0].flatten().tolist()) for b in batches} for _ in range(3)]
    assert len(first) == 2
    assert first == second == third


def test_an_epoch_that_was_left_early_goes_on_with_the_same_workers(files: ImageFiles) -> None:
    whole, batches = Batches(files, 4, seed=2), Batches(files, 4, seed=2, workers=2)
    expected = [b.index.tolist() for _ in range(2) for b in whole]
    seen = []
    while len(seen) < len(expected):
        for count, batch in enumerate(batches, start=1):
            seen.append(batch.index.tolist())
            if count == 2:
                break
    assert seen == expected


def test_a_long_name_costs_its_own_length_only() -> None:
    names = [f"class/{i:08d}.jpg" for i in range(1000)]
    files = ImageFiles(Path(), [*names, "x" * 5000], torch.full((1001,), -1), (), size=1)
    assert list(files.names) == [*names, "x" * 5000]
    assert list(files.select(torch.tensor([1000, 3])).names) == ["x" * 5000, names[3]]
    assert len(pickle.dumps(files.names)) < 50_000  # a copy of what a worker needs


@pytest.mark.parametrize("workers", [0, 1])
def test_decoding_leaves_the_global_generator_alone(files: ImageFiles, workers: int):
    before = torch.get_rng_state()
    next(iter(Batches(files, 4, seed=5, workers=workers)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("source", ["memory", "files", "workers"])
def test_position_restored_at_every_batch(files: ImageFiles, source: str, limit: int | None):
    images = numbered(22) if source == "memory" else files
    options = {"limit": limit, "workers": 1 if source == "workers" else 0}

    def epochs(batches: Batches, count: int) -> list[list[int]]:
        return [b.index.tolist() for _ in range(count) for b in batches]

    per_epoch = limit or 5
    whole = epochs(Batches(images, 4, seed=2, **options), 2)
    for stop in range(1, 2 * per_epoch) if source != "workers" else (2, per_epoch):
        first = Batches(images, 4, seed=2, **options)
        seen: list[list[int]] = []
        while len(seen) < stop:
            for batch in first:
                seen.append(batch.index.tolist())
                if len(seen) == stop:
                    break
        second = Batches(images, 4, seed=2, **options)
        second.load_state_dict(first.state_dict())
        while len(seen) < 2 * per_epoch:
            seen += epochs(second, 1)
        assert seen == whole


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({"batch_size": 7, "world_size": 2}, ("7", "2")),
        ({"batch_size": 23}, ("22", "23")),
        ({"batch_size": 0}, ("0",)),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, ("2",)),
        ({"batch_size": 4, "seed": -1}, ("-1",)),
    ],
)
def test_errors_name_the_numbers(options: dict[str, Any], numbers: tuple[str, ...]):
    with pytest.raises(InputError) as caught:
        Batches(numbered(22), **({"seed": 0} | options))
    assert all(number in str(caught.value) for number in numbers)


class Recorder(pl.LightningModule):
    """Notes the rows of each batch, saves a checkpoint after batch number `stop` and then fails."""

    def __init__(self, path: Path, stop: int | None = None, at_epoch_end: bool = False, ask: bool = True) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.path, self.stop, self.at_epoch_end, self.ask = path, stop, at_epoch_end, ask
        self.seen: list[list[int]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.index.tolist())
        return self.weight * 1.0

    def on_train_batch_end(self, *args: Any) -> None:
        if len(self.seen) == self.stop and not self.at_epoch_end:
            self.interrupt()

    def on_train_epoch_end(self) -> None:
        if self.stop is not None and len(self.seen) >= self.stop and self.at_epoch_end:
            self.interrupt()

    def interrupt(self) -> None:
        self.trainer.save_checkpoint(self.path)
        raise KeyboardInterrupt

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.ask:
            _ = self.trainer.estimated_stepping_batches  # makes Lightning ask for the batches early
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(
    images: Images | ImageFiles,
    module: Recorder,
    resume: Path | None = None,
    workers: int = 0,
    data: PretrainData | None = None,
    **trainer: Any,
) -> list[list[int]]:
    data = data or PretrainData(images, 4, seed=7, workers=workers)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    run = pl.Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **trainer)
    try:
        run.fit(module, data, ckpt_path=resume, weights_only=True)
    except (KeyboardInterrupt, SystemExit):
        assert module.stop is not None
    return module.seen


LENGTHS = [
    {"max_epochs": 3},
    {"max_steps": 13, "max_epochs": -1},
    {"max_epochs": 3, "limit_train_batches": 3},
    {"max_epochs": 3, "limit_train_batches": 0.61},
]


@pytest.mark.parametrize("ask", [True, False])
@pytest.mark.parametrize("length", LENGTHS, ids=["epochs", "steps", "limit", "share"])
def test_resumed_run_sees_the_same_batches(tmp_path: Path, length: dict[str, Any], ask: bool):
    images, path = numbered(22), tmp_path / "stop.ckpt"
    whole = fit(images, Recorder(path), **length)
    for stop in range(1, len(whole)):
        first = fit(images, Recorder(path, stop, ask=ask), **length)
        second = fit(images, Recorder(path, ask=ask), path, **length)
        assert first + second == whole, f"stopped after {stop} batches"


def test_resumed_at_the_end_of_an_epoch_and_twice(tmp_path: Path):
    images, path = numbered(22), tmp_path / "stop.ckpt"
    for length in LENGTHS:
        whole = fit(images, Recorder(path), **length)
        for stops in ((1, 1), (2, 2), (2, 4)):  # the second after the epoch in which its own batch count gets there
            seen = fit(images, Recorder(path, stops[0]), **length)
            seen += fit(images, Recorder(path, stops[1], at_epoch_end=True), path, **length)
            assert len(seen) < len(whole)
            assert seen + fit(images, Recorder(path), path, **length) == whole, (length, stops)


def test_resumed_run_decoding_in_workers(tmp_path: Path, files: ImageFiles):
    path = tmp_path / "stop.ckpt"
    whole = fit(numbered(22), Recorder(path), max_epochs=2)
    for stop in (3, 5):
        seen = fit(files, Recorder(path, stop), workers=1, max_epochs=2)
        assert seen + fit(files, Recorder(path), path, workers=1, max_epochs=2) == whole


def test_a_datamodule_serves_a_second_fit(tmp_path: Path):
    images, path = numbered(22), tmp_path / "stop.ckpt"
    data = PretrainData(images, 4, seed=7)
    whole = fit(images, Recorder(path), data=data, max_epochs=2)
    assert fit(images, Recorder(path), data=data, max_epochs=2) == whole
    first = fit(images, Recorder(path, 6), data=data, max_epochs=2)
    assert first + fit(images, Recorder(path), path, data=data, max_epochs=2) == whole


class RankRecorder(Recorder):
    def on_fit_end(self) -> None:
        torch.save(self.seen, self.path.with_suffix(f".{self.global_rank}"))


def test_two_ranks_under_lightning_share_each_batch(tmp_path: Path):
    images, path = numbered(22), tmp_path / "ranks"
    whole = fit(images, Recorder(path), max_epochs=2)
    fit(images, RankRecorder(path), max_epochs=2, strategy="ddp_fork", devices=2)
    parts = [torch.load(path.with_suffix(f".{rank}")) for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole
