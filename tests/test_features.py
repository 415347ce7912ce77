"""Features of a frozen encoder, and their cache."""

import pytest
import torch
from torch import Tensor, nn

from contrast.data.images.image_set import Images
from contrast.errors import InputError
from contrast.evaluation import cached_features, digest, features


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


def test_the_cache_computes_once_and_leaves_no_other_file(tmp_path):
    calls = []

    def compute() -> Tensor:
        calls.append(1)
        return torch.arange(12.0).view(3, 4).T  # not contiguous

    for _ in range(3):
        assert torch.equal(cached_features(tmp_path / "new", "abc", compute), compute())
    assert len(calls) == 4
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["abc.safetensors"]


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text"])
def test_a_damaged_cache_is_named_and_built_again(tmp_path, damage):
    truth = torch.arange(100.0)
    cached_features(tmp_path, "abc", lambda: truth)
    file = tmp_path / "abc.safetensors"
    content = file.read_bytes()
    flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
    file.write_bytes({"empty": b"", "cut": content[:-8], "flipped": flipped, "text": b"no tensor" * 9}[damage])
    with pytest.warns(UserWarning, match=r"abc\.safetensors is damaged"):
        assert torch.equal(cached_features(tmp_path, "abc", lambda: truth), truth)
    assert file.read_bytes() == content


def test_a_failed_computation_leaves_nothing_behind(tmp_path):
    with pytest.raises(ZeroDivisionError):
        cached_features(tmp_path, "abc", lambda: torch.ones(1 // 0))
    assert not list(tmp_path.iterdir())


def test_the_digest_tells_weights_data_and_settings_apart():
    encoder = Small()
    seen = {digest(encoder, "cifar10", 50000, {"batch": 2})}
    assert digest(encoder, "cifar10", 50000, {"batch": 2}) in seen
    seen |= {digest(encoder, "cifar10", 10000, {"batch": 2}), digest(encoder, "cifar10", 50000, {"batch": 3})}
    encoder.net[2].running_mean[0] += 1e-6
    seen |= {digest(encoder, "cifar10", 50000, {"batch": 2})}
    seen |= {digest(torch.zeros(4)), digest(torch.zeros(2, 2)), digest(torch.zeros(4, dtype=torch.bfloat16))}
    assert len(seen) == 7
