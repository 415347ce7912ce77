"""The rows on which the metrics of a run are measured, and their names."""

import pytest
import torch
from omegaconf import OmegaConf

from contrast.data.images.image_set import Images, Splits
from contrast.evaluation.report import labelled, metric_names, table


def images(labels: torch.Tensor) -> Images:
    pixels = torch.arange(len(labels), dtype=torch.int32).view(torch.uint8).view(-1, 4, 1, 1)
    return Images(pixels, labels, tuple(map(str, range(10))))


@pytest.mark.parametrize("order", ["in turn", "by class"])
def test_few_labelled_images_have_every_class_in_its_share(order: str) -> None:
    labels = torch.arange(991) % 10  # every tenth image, evenly spread, is of class 0
    labels = labels if order == "in turn" else labels.sort().values
    some = labelled(images(torch.cat([labels, torch.full((500,), -1)])), 100)
    assert len(some) == 100
    assert torch.bincount(some.labels).tolist() == pytest.approx([10] * 10, abs=1)
    again = labelled(images(torch.cat([labels, torch.full((500,), -1)])), 100)
    assert torch.equal(some.pixels, again.pixels)


def test_all_labelled_images_are_taken_in_order() -> None:
    data = images(torch.tensor([3, -1, 2, 2, -1]))
    for most in (None, 3, 7):
        assert torch.equal(labelled(data, most).pixels, data.pixels[[0, 2, 3]])


def test_names_and_table() -> None:
    cfg = {"enabled": True, "untrained": True, "pixels": False, "per_class": [10, 11], "max_train": None}

    def names(classes: int, each: int, test: bool = True, **other: object) -> set[str]:
        data = images(torch.arange(classes).repeat(each))
        splits = Splits("some", data, data if test else None)
        return metric_names(OmegaConf.create(cfg | other), splits)

    always = {"loss", "seconds", "images_per_second"}
    measured = names(6, 10)
    assert {*always, "knn_top5", "linear_val_top1", "untrained_linear_10_per_class_top1"} <= measured
    assert "linear_11_per_class_top1" not in measured
    assert not [name for name in measured if name.startswith("pixels_") or "recall" in name]
    assert "pixels_knn_top1" in names(6, 10, pixels=True)
    assert "knn_top5" not in names(5, 10)
    assert "linear_val_top1" not in names(6, 1)  # nothing can be held out
    assert "linear_val_top1" not in names(6, 10, max_train=6)
    assert names(6, 10, enabled=False) == names(6, 10, test=False) == always
    metrics = {"knn_top1": 0.5, "linear_top1": 0.25, "linear_10_per_class_top1": 0.125, "untrained_knn_top1": 0.1}
    lines = table(metrics | {"text_to_image_recall1": 0.75}).splitlines()
    assert [line.split() for line in lines] == [
        ["untrained", "trained"],
        ["kNN", "top-1", "0.1000", "0.5000"],
        ["linear", "probe", "top-1", "-", "0.2500"],
        ["linear", "probe,", "10", "labels", "a", "class", "-", "0.1250"],
        ["images", "for", "captions", "recall@1", "0.7500"],
    ]
