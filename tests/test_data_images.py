"""Images in memory: statistics, selection, digits, and stratified subsets."""

from pathlib import Path

import numpy as np
import pytest
import torch

from contrast.data.images.digits import digits
from contrast.data.images.image_set import ImageFiles, Images, Splits
from contrast.data.images.subset import hold_out, labelled_subset, stratified
from contrast.errors import InputError


def random_images(count: int, channels: int = 3) -> Images:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, channels, 4, 5), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.randint(-1, 2, (count,), generator=generator), ("a", "b"))


@pytest.mark.parametrize("count", [1, 7, 5000])
def test_statistics_match_float64(count: int):
    images = random_images(count)
    mean, std = images.statistics()
    values = images.pixels.double() / 255
    assert mean.dtype == std.dtype == torch.float64
    torch.testing.assert_close(mean, values.mean((0, 2, 3)), rtol=1e-12, atol=0)
    torch.testing.assert_close(std, values.std((0, 2, 3), correction=0), rtol=1e-12, atol=0)


def test_statistics_do_not_cancel_and_a_constant_channel_divides_by_one():
    pixels = torch.full((3, 2, 100, 100), 255, dtype=torch.uint8)
    pixels[0, 1, 0, 0] = 254
    mean, std = Images(pixels, torch.zeros(3, dtype=torch.int64), ("a",)).statistics()
    n = 30_000
    assert mean.tolist() == pytest.approx([1.0, 1 - 1 / (255 * n)], rel=1e-15)
    assert std.tolist() == pytest.approx([1.0, (1 / n * (1 - 1 / n)) ** 0.5 / 255], rel=1e-12)


def test_select_and_properties():
    images = random_images(6)
    chosen = images.select(torch.tensor([4, 0]))
    assert len(chosen) == 2
    assert (images.channels, images.size) == (3, 4)
    assert torch.equal(chosen.pixels, images.pixels[[4, 0]])
    assert torch.equal(chosen.labels, images.labels[[4, 0]])
    assert chosen.classes == images.classes


def test_pretrain_joins_the_unlabelled_images():
    train, extra = random_images(3), random_images(4)
    assert Splits("x", train, None).pretrain is train
    both = Splits("x", train, None, extra).pretrain
    assert torch.equal(both.pixels, torch.cat([train.pixels, extra.pixels]))
    assert torch.equal(both.labels, torch.cat([train.labels, extra.labels]))


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (torch.zeros(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64), "float32"),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), r"\[2, 3, 3\]"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"\[3\]"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([0, 1]), "0..1"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([-2, 0]), "-2..0"),
    ],
)
def test_images_refuse_what_does_not_fit(pixels: torch.Tensor, labels: torch.Tensor, message: str):
    with pytest.raises(InputError, match=message):
        Images(pixels, labels, ("only",))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.float32])
def test_labels_and_token_ids_of_any_type_become_int64(dtype: torch.dtype):
    pixels, labels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([1, 0, 1])
    text = torch.tensor([[2, 0], [3, 1], [1, 1]])
    for values in (labels.to(dtype), labels.to(dtype).numpy()):
        images = Images(pixels, values, ("a", "b"), text.to(dtype))  # type: ignore[arg-type]
        files = ImageFiles(Path(), np.array(["x", "y", "z"]), values, ("a", "b"), 2, text=text.to(dtype))
        for found in (images, files):
            assert found.labels.dtype == torch.int64
            assert torch.equal(found.labels, labels)
            assert found.text is not None
            assert found.text.dtype == torch.int64
            assert torch.equal(found.text, text)
    with pytest.raises(InputError, match=r"labels must be whole numbers, but 1 of 3 are not: 0\.5"):
        Images(pixels, torch.tensor([0, 0.5, 1]), ("a", "b"))


def test_digits_split_is_fixed_and_stratified():
    splits = digits()
    train, test = splits.train, splits.test
    assert isinstance(train, Images)
    assert isinstance(test, Images)
    assert (len(train), len(test), train.channels, train.size) == (1437, 360, 1, 8)
    assert (int(train.pixels.max()), int(train.pixels.min())) == (255, 0)
    for part in (train, test):
        share = torch.bincount(part.labels, minlength=10) / len(part)
        assert share.min() > 0.095
        assert share.max() < 0.105
    assert torch.equal(train.pixels, digits().train.pixels)
    seen = {row.numpy().tobytes() for row in train.pixels}
    assert not any(row.numpy().tobytes() in seen for row in test.pixels)
    assert set(train.pixels.unique().tolist()) == set(np.rint(np.arange(17) * 255 / 16).astype(int).tolist())


LABELS = torch.tensor([0] * 50 + [1] * 30 + [2] * 3 + [-1] * 40)[torch.randperm(123, generator=torch.manual_seed(0))]


@pytest.mark.parametrize(("fraction", "counts"), [(0.01, [1, 1, 1]), (0.1, [5, 3, 1]), (1.0, [50, 30, 3])])
def test_labelled_subset_by_fraction(fraction: float, counts: list[int]):
    rows = labelled_subset(LABELS, fraction=fraction, seed=1)
    assert torch.bincount(LABELS[rows]).tolist() == counts
    assert len(set(rows.tolist())) == len(rows)
    assert rows.tolist() == sorted(rows.tolist())
    assert torch.equal(rows, labelled_subset(LABELS, fraction=fraction, seed=1))
    if fraction < 1:
        assert not torch.equal(rows, labelled_subset(LABELS, fraction=fraction, seed=2))


def test_labelled_subset_per_class():
    rows = labelled_subset(LABELS, per_class=3, seed=0)
    assert torch.bincount(LABELS[rows]).tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "fraction=None, per_class=None"),
        ({"fraction": 0.1, "per_class": 1}, "per_class=1"),
        ({"fraction": 0.0}, "0.0"),
        ({"fraction": 1.5}, "1.5"),
        ({"per_class": 0}, "per_class=0"),
        ({"per_class": 4}, "class 2 has 3 images, fewer than per_class=4"),
    ],
)
def test_labelled_subset_errors(options: dict, message: str):
    with pytest.raises(InputError, match=message):
        labelled_subset(LABELS, **options)
    with pytest.raises(InputError, match="none of 4"):
        labelled_subset(torch.full((4,), -1), per_class=1)


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5])
def test_hold_out_is_a_stratified_partition(fraction: float):
    fit, held = hold_out(LABELS, fraction, seed=3)
    together = torch.cat([fit, held])
    assert sorted(together.tolist()) == torch.nonzero(LABELS >= 0).flatten().tolist()
    for label, count in enumerate((50, 30, 3)):
        found = int((LABELS[held] == label).sum())
        assert found == max(1, round(fraction * count))
    again = hold_out(LABELS, fraction, seed=3)
    assert torch.equal(fit, again[0])
    assert torch.equal(held, again[1])


def test_hold_out_errors():
    with pytest.raises(InputError, match=r"not 1\.0"):
        hold_out(LABELS, 1.0)
    with pytest.raises(InputError, match="class 1 has 1 image"):
        hold_out(torch.tensor([0, 0, 1]), 0.5)
    with pytest.raises(InputError, match="none of 4"):
        hold_out(torch.full((4,), -1), 0.5)
    assert [rows.tolist() for rows in hold_out(torch.tensor([0, -1, 0]), 0.9)] in ([[0], [2]], [[2], [0]])


@pytest.mark.parametrize("most", [3, 10, 40, 83, 500])
def test_a_sample_has_every_class_in_its_share_even_if_rows_are_sorted(most: int):
    for labels in (LABELS, LABELS.sort().values, LABELS.int(), LABELS.sort(descending=True).values.float()):
        rows = stratified(labels, most, seed=1)
        assert rows.dtype == torch.int64
        assert rows.tolist() == sorted(set(rows.tolist()))
        taken = min(most, 83)
        counts = torch.bincount(labels[rows].long(), minlength=3).tolist()  # there are no negative labels among them
        assert sum(counts) == taken
        for count, size in zip(counts, (50, 30, 3), strict=True):
            assert count >= 1
            assert abs(count - taken * size / 83) <= 1.5
        assert torch.equal(rows, stratified(labels, most, seed=1))
        if 3 < most < 83:
            assert not torch.equal(rows, stratified(labels, most, seed=2))


def test_a_sample_of_fewer_rows_than_classes_draws_the_classes():
    labels = torch.arange(10)
    seen = {tuple(stratified(labels, 2, seed).tolist()) for seed in range(30)}
    assert all(len(rows) == 2 for rows in seen)
    assert {row for rows in seen for row in rows} == set(range(10))


def test_sample_errors():
    with pytest.raises(InputError, match="not 0"):
        stratified(LABELS, 0, seed=0)
    with pytest.raises(InputError, match="none of 4"):
        stratified(torch.full((4,), -1), 2, seed=0)


def test_subsets_take_labels_of_any_integer_type():
    for dtype in (torch.int32, torch.int16, torch.float32):
        assert torch.equal(labelled_subset(LABELS.to(dtype), per_class=2), labelled_subset(LABELS, per_class=2))
        assert torch.equal(hold_out(LABELS.to(dtype), 0.5)[0], hold_out(LABELS, 0.5)[0])
    with pytest.raises(InputError, match=r"labels must be whole numbers.* 0\.5"):
        labelled_subset(torch.tensor([0.5, 1.0]), per_class=1)
