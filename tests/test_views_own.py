"""Views by other libraries' transforms: pure functions of pixels and uniforms, as ours are."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Command
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torchvision.transforms import v2

from contrast.errors import InputError
from contrast.run.metrics import read_rows
from contrast.views import OwnViews

CROP = {"_target_": "torchvision.transforms.v2.RandomResizedCrop", "size": 8}
LIBRARIES: dict[str, dict[str, Any]] = {
    "torchvision": {
        "_target_": "torchvision.transforms.v2.Compose",
        "transforms": [CROP, {"_target_": "torchvision.transforms.v2.ColorJitter", "brightness": 0.5, "hue": 0.1}],
    },
    "albumentations": {
        "_target_": "albumentations.Compose",
        "transforms": [
            {"_target_": "albumentations.RandomResizedCrop", "size": [8, 8]},
            {"_target_": "albumentations.D4", "p": 1.0},
        ],
    },
    "kornia": {
        "_target_": "kornia.augmentation.AugmentationSequential",
        "_args_": [
            {"_target_": "kornia.augmentation.RandomResizedCrop", "size": [8, 8]},
            {"_target_": "kornia.augmentation.RandomVerticalFlip"},
        ],
    },
    "a function": {"_target_": "test_views_own.shifted", "_partial_": True, "by": 3},
}


def shifted(image: Tensor, by: int) -> Tensor:
    """Draws from all three generators."""
    return image[:, :8, :8].roll(random.randint(0, by) + int(torch.randint(by, ())) + np.random.randint(by), 1)  # noqa: NPY002


def images(count: int = 5, size: int = 12) -> Tensor:
    return torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def views_of(library: str) -> OwnViews:
    if library != "a function":
        pytest.importorskip(library)
    node = {"_target_": "contrast.views.OwnViews", "size": 8, "_convert_": "all", "transform": LIBRARIES[library]}
    return instantiate(OmegaConf.create(node))


@pytest.mark.parametrize("library", LIBRARIES)
def test_views_are_a_function_of_pixels_and_uniforms(library: str) -> None:
    views = views_of(library)
    uniforms = views.draw(5, torch.Generator().manual_seed(1))
    assert uniforms.shape == (2, 5, 2)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    first = views(images(), uniforms)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    random.seed(5)
    torch.manual_seed(5)
    again = views(images(), uniforms)
    assert all(map(torch.equal, first, again))
    assert [view.shape for view in first] == [(5, 3, 8, 8)] * 2
    assert all(view.dtype == torch.float32 and view.min() >= 0 and view.max() <= 1 for view in first)
    assert not torch.equal(first[0], first[1])
    part = views(images()[2:4], uniforms[:, 2:4])  # as another rank has it
    assert all(torch.equal(whole[2:4], own) for whole, own in zip(first, part, strict=True))


def test_a_list_has_a_transform_for_each_kind_of_view() -> None:
    views = OwnViews(8, [v2.CenterCrop(8), v2.Compose([v2.CenterCrop(8), v2.RandomInvert(p=1.0)])])
    one, other = views(images(), views.draw(5, torch.Generator()))
    assert torch.allclose(one, 1 - other, atol=1e-6)
    assert views.sizes == [8, 8]


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (v2.CenterCrop(6), r"\[3, 8, 8\] with views.size=8, not \[3, 6, 6\]"),
        (lambda image: [image], "not list"),
        (lambda image: image[:, :8, :8] / 100, "values in 0..1.*leave normalisation to the model"),
    ],
)
def test_what_a_transform_may_not_return(transform: Any, message: str) -> None:
    views = OwnViews(8, transform)
    with pytest.raises(InputError, match=message):
        views(images(), views.draw(5, torch.Generator()))


def larger(node: Any) -> Any:
    """The transform with crops of at least half of the image."""
    if isinstance(node, list):
        return [larger(each) for each in node]
    if not isinstance(node, dict):
        return node
    crop = {"scale": [0.5, 1.0]} if str(node["_target_"]).endswith("ResizedCrop") else {}
    return {key: larger(value) for key, value in node.items()} | crop


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torchvision", "albumentations", "kornia"])
def test_a_run_with_own_views_goes_on_as_if_it_had_not_stopped(
    pretrain: Command, workplace: Path, library: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(library)
    (workplace / "conf/views").mkdir(parents=True)
    node = {"_target_": "contrast.views.OwnViews", "_convert_": "all", "size": 8}
    node["transform"] = larger(LIBRARIES[library])
    (workplace / "conf/views/mine.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(node)))
    words = (*TINY, "--config-dir", "conf", "views=mine", "trainer.log_every_n_steps=1", "scheduler=constant")
    words = (*words, "trainer.limit_train_batches=2")
    assert pretrain(*words, "trainer.max_epochs=2", "hydra.run.dir=whole") == 0
    assert pretrain(*words, "trainer.max_epochs=1", "hydra.run.dir=part") == 0
    if library != "torchvision":  # whose transforms any file may call
        assert pretrain("resume=part", "trainer.max_epochs=2") == 2
        assert f"{library}." in capfd.readouterr().err
    assert pretrain("resume=part", "trainer.max_epochs=2", "--config-dir", "conf", "trust=true") == 0
    assert Path("whole/views.png").is_file()
    losses = [
        [row["train/loss"] for row in read_rows(Path(run, "metrics.jsonl")) if "train/loss" in row]
        for run in ("whole", "part")
    ]
    assert losses[0] == pytest.approx(losses[1])
    assert len(losses[0]) == 4
