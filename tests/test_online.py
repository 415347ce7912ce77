"""Online probes: measured on held-out training rows, deaf to unlabelled ones, in the checkpoint."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from test_module import make, trainer

from contrast.data.images.image_set import Batch, Images
from contrast.errors import InputError
from contrast.training.callbacks.online import OnlineKNN, OnlineLinear
from contrast.training.data import PretrainData
from contrast.training.trainer import callbacks_of


def striped(n: int = 60) -> Images:
    """Class k is bright in row k: easy for any encoder."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(60, (n, 1, 8, 8), generator=generator).to(torch.uint8)
    labels = torch.arange(n) % 3
    for row, label in enumerate(labels.tolist()):
        pixels[row, 0, 2 * label + 1] = 250
    return Images(pixels, labels, ("a", "b", "c"))


def test_both_probes_log_the_held_out_rows(tmp_path: Path) -> None:
    images = striped()
    probes = [OnlineKNN(images, every_n_epochs=2, k=5), OnlineLinear(images, every_n_epochs=2, lr=0.05)]
    seen = []

    class Look(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module) -> None:
            seen.append(sorted(name for name in trainer.callback_metrics if name.startswith("online")))

    run = trainer(tmp_path, max_epochs=5, callbacks=[*probes, Look()])
    run.fit(make(crop_scale=(0.9, 1.0), flip=0.0, blur=0.0), PretrainData(images, 16))
    both = ["online/knn_top1", "online/linear_top1"]
    assert seen == [[], [], both, both, both]
    assert run.callback_metrics["online/knn_top1"] > 0.9
    assert len(probes[0].fit_rows) == 48
    assert len(probes[0].held_rows) == 12
    assert not set(probes[0].fit_rows.tolist()) & set(probes[0].held_rows.tolist())


def probe_step(probe: OnlineLinear, embedding: torch.Tensor, labels: torch.Tensor, index: torch.Tensor) -> None:
    batch = Batch(torch.zeros(len(index), 1, 8, 8, dtype=torch.uint8), labels, index)
    probe.on_train_batch_end(None, None, {"embedding": embedding[None]}, batch, 0)


def fresh(images: Images) -> OnlineLinear:
    probe = OnlineLinear(images)
    probe.on_fit_start(None, SimpleNamespace(encoder=SimpleNamespace(num_features=4), device=torch.device("cpu")))
    return probe


def test_held_out_and_unlabelled_rows_teach_nothing() -> None:
    images = striped(30)
    probe = fresh(images)
    held = probe.held_rows
    beyond = torch.tensor([30, 31])  # unlabelled images that pretraining sees besides
    index = torch.cat([held, beyond])
    labels = torch.cat([images.labels[held], torch.tensor([-1, -1])])
    probe_step(probe, torch.randn(len(index), 4), labels, index)
    assert probe.trained[0].weight.abs().max() == 0
    fit = probe.fit_rows[:4]
    probe_step(probe, torch.randn(4, 4), images.labels[fit], fit)
    assert probe.trained[0].weight.abs().max() > 0


def test_the_linear_probe_resumes_from_its_state() -> None:
    images = striped(30)
    torch.manual_seed(0)
    steps = [torch.randn(6, 4) for _ in range(4)]
    rows = fresh(images).fit_rows[:6]
    whole, half = fresh(images), fresh(images)
    for embedding in steps:
        probe_step(whole, embedding, images.labels[rows], rows)
    for embedding in steps[:2]:
        probe_step(half, embedding, images.labels[rows], rows)
    resumed = OnlineLinear(images)
    resumed.load_state_dict(half.state_dict())
    resumed.on_fit_start(None, SimpleNamespace(encoder=SimpleNamespace(num_features=4), device=torch.device("cpu")))
    for embedding in steps[2:]:
        probe_step(resumed, embedding, images.labels[rows], rows)
    assert torch.equal(resumed.trained[0].weight, whole.trained[0].weight)


def test_at_most_so_many_images_are_looked_at() -> None:
    probe = OnlineKNN(striped(60), max_fit=8, held_out=0.2)
    assert (len(probe.fit_rows), len(probe.held_rows)) == (8, 2)
    with pytest.raises(InputError, match="at least 1, got 0"):
        OnlineKNN(striped(60), every_n_epochs=0)


def test_a_few_images_have_every_class_among_them() -> None:
    """Rows sorted by class, of which evenly spaced ones miss some."""
    pixels = torch.zeros(1000, 1, 8, 8, dtype=torch.uint8)
    labels = torch.cat([torch.zeros(991, dtype=torch.int64), torch.arange(1, 10)]).repeat_interleave(2)[:1000]
    labels[-20:] = torch.arange(10).repeat_interleave(2)
    probe = OnlineKNN(Images(pixels, labels, tuple("abcdefghij")), max_fit=40, held_out=0.5)
    assert set(labels[probe.fit_rows].tolist()) == set(labels[probe.held_rows].tolist()) == set(range(10))


def test_a_callback_that_is_null_is_left_out() -> None:
    assert callbacks_of(OmegaConf.create({"callbacks": {"online_knn": None, "online_linear": None}}), {}) == []
