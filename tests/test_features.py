"""Features of a frozen encoder, in order and computed once."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from contrast.data.images.image_set import Images
from contrast.errors import InputError
from contrast.evaluation.features import EvaluationData, features


def images(n: int = 11) -> Images:
    pixels = torch.randint(0, 256, (n, 2, 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(pixels, torch.arange(n) % 2, ("a", "b"))


class Small(nn.Module):
    """Normalisation, batch norm and dropout, which eval mode makes a fixed function."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(18, 5), nn.BatchNorm1d(5), nn.Dropout())

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net(pixels.float() / 255)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 512])
def test_features_come_in_order_from_eval_mode(batch_size):
    data, encoder = images(), Small()
    found = features(encoder, data, batch_size=batch_size)
    with torch.no_grad():
        torch.testing.assert_close(found, encoder.eval()(data.pixels))
    assert found.dtype == torch.float32
    assert found.device.type == "cpu"


def test_the_mode_of_every_submodule_is_restored_also_after_an_error():
    encoder = Small().train()
    encoder.net[2].eval()
    before = {name: part.training for name, part in encoder.named_modules()}
    statistics = encoder.net[2].running_mean.clone()
    features(encoder, images())
    assert {name: part.training for name, part in encoder.named_modules()} == before
    encoder.net.append(nn.Linear(4, 4))  # does not fit
    before["net.4"] = True
    with pytest.raises(RuntimeError):
        features(encoder, images())
    assert {name: part.training for name, part in encoder.named_modules()} == before
    assert torch.equal(encoder.net[2].running_mean, statistics)


def test_a_probe_can_train_on_the_features_and_half_precision_comes_back_as_float32():
    found = features(lambda pixels: pixels.flatten(1).bfloat16(), images())
    weight = torch.ones(18, requires_grad=True)
    (found @ weight).sum().backward()  # refused for tensors made in inference mode
    assert torch.equal(weight.grad, images().pixels.flatten(1).float().sum(0))


def test_an_encoder_that_keeps_its_maps_is_refused():
    with pytest.raises(InputError, match=r"4 images gave \[4, 2, 3, 3\]"):
        features(lambda pixels: pixels.float(), images(), batch_size=4)


@pytest.mark.parametrize("cached", [True, False])
def test_features_of_an_evaluation_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool):
    encoder, one = Small(), images()
    other = Images(one.pixels.flip(0), one.labels, one.classes)

    def data() -> EvaluationData:
        return EvaluationData(encoder, one, other, torch.device("cpu"), tmp_path if cached else None)

    first = data()
    wanted = features(encoder, one), features(encoder, other)
    assert torch.equal(first.train_features, wanted[0])
    assert torch.equal(first.test_features, wanted[1])
    assert len(list(tmp_path.iterdir())) == 2 * cached
    with monkeypatch.context() as patched:
        patched.setattr(Small, "forward", lambda *_: pytest.fail("computed again"))
        assert torch.equal(first.train_features, wanted[0])
        if cached:
            assert torch.equal(data().test_features, wanted[1])
    encoder.net[2].running_mean[0] += 1
    assert not torch.equal(data().test_features, wanted[1])
