import copy
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, Command
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn
from torchvision import models

from contrast.encoders import conv_net, resnet, timm_model, vit
from contrast.encoders.contract import check_view_sizes, size_error
from contrast.encoders.vision import VIT_SIZES
from contrast.errors import InputError
from contrast.network import look_for_the_hub

CONF = Path(__file__).parents[1] / "conf"


OF_OTHERS = ("floret", "gru", "subwords", "words", "open_clip")
OF_IMAGES = sorted(path for path in (CONF / "encoder").glob("*.yaml") if path.stem not in OF_OTHERS)


@pytest.mark.parametrize("path", OF_IMAGES, ids=lambda path: path.stem)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_every_configured_encoder_keeps_the_contract(path: Path, channels: int, size: int) -> None:
    if path.stem == "timm":
        pytest.importorskip("timm")
        size = 32
    with initialize_config_dir(str(CONF), version_base="1.3"):  # a file may build on another one
        node = compose(f"encoder/{path.stem}").encoder
    encoder = instantiate(node, in_channels=channels, image_size=size)
    out = encoder(torch.randn(2, channels, size, size))
    assert out.shape == (2, encoder.num_features)
    out.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_conv_net_layout() -> None:
    net = conv_net(1, 8, widths=(4, 6, 8))
    kinds = [type(part).__name__ for part in net]
    block = ["Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU"]
    assert kinds == [*block, *block, "Conv2d", "BatchNorm2d", "ReLU", "AdaptiveAvgPool2d", "Flatten"]
    assert net.num_features == 8


def test_conv_net_refuses_images_that_its_pooling_would_use_up() -> None:
    with pytest.raises(InputError, match="3 blocks need images of 4 pixels or more, these have 3"):
        conv_net(1, 3, widths=(4, 4, 4))
    with pytest.raises(InputError, match="widths is empty"):
        conv_net(widths=())


def test_resnet_is_torchvisions_without_the_classifier() -> None:
    theirs = models.resnet18()
    ours = resnet("resnet18", stem="imagenet")
    expected = {key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    ours.load_state_dict(expected)  # strict: the same keys and shapes
    theirs.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_cifar_stem_keeps_the_resolution() -> None:
    net = resnet("resnet18", stem="cifar")
    sizes = []
    for layer in (net.conv1, net.layer1, net.layer4):
        layer.register_forward_hook(lambda _module, _args, out: sizes.append(tuple(out.shape[1:])))
    net.eval()(torch.randn(1, 3, 32, 32))
    assert sizes == [(64, 32, 32), (64, 32, 32), (512, 4, 4)]


@pytest.mark.parametrize(("name", "last"), [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_zero_init_residual(name: str, last: str) -> None:
    for zero in (True, False):
        net = resnet(name, zero_init_residual=zero)
        gammas = [p for key, p in net.named_parameters() if key.endswith(f"{last}.weight")]
        assert gammas
        assert all((gamma == (0.0 if zero else 1.0)).all() for gamma in gammas)


@pytest.mark.parametrize(("build", "name"), [(resnet, "resnet81"), (vit, "vit_bb"), (vit, "vitb_16")])
def test_unknown_names_get_the_nearest(build, name: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=f"'{name}'; nearest: .*{name[:3]}"):
        build(name)


@pytest.mark.parametrize(("size", "kernel"), [(32, 3), (64, 3), (96, 7), (224, 7)])
def test_the_stem_follows_the_size(size: int, kernel: int) -> None:
    assert resnet("resnet18", image_size=size).conv1.kernel_size == (kernel, kernel)


def test_a_net_for_small_images_says_so(caplog: pytest.LogCaptureFixture) -> None:
    conv_net(3, 64)
    assert not caplog.messages
    conv_net(3, 224)
    assert "these have 224: encoder=resnet18" in caplog.text


def test_unknown_stem() -> None:
    with pytest.raises(InputError, match="not 'big'"):
        resnet(stem="big")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["vit_b_16", "vit_l_16", "vit_h_14"])
def test_vit_sizes_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        theirs = models.get_model(name).state_dict()
        ours = vit(name, image_size=224).state_dict()
    expected = {key: value.shape for key, value in theirs.items() if not key.startswith("heads.")}
    assert {key: value.shape for key, value in ours.items()} == expected


def test_vit_names_and_patches() -> None:
    with torch.device("meta"):
        for size, (layers, _, hidden, _) in VIT_SIZES.items():
            net = vit(size, patch_size=4)
            assert (net.num_features, len(net.encoder.layers)) == (hidden, layers)
        assert vit("vit_b_16", image_size=32, patch_size=8).patch_size == 8
        with pytest.raises(InputError, match="patches of 5 pixels do not tile images of 32"):
            vit("vit_s", patch_size=5)
        with pytest.raises(InputError, match="set patch_size"):
            vit("vit_s")
        with pytest.raises(InputError, match="ends in 'x'"):
            vit("vit_b_x")


def test_vit_of_one_channel_starts_at_the_right_scale() -> None:
    weight = vit("vit_ti", in_channels=1, patch_size=8).conv_proj.weight
    assert weight.shape == (192, 1, 8, 8)
    assert weight.std().item() == pytest.approx(64**-0.5, rel=0.05)


@pytest.mark.parametrize("build", [conv_net, resnet])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_changes_the_layout_and_not_the_values(build, channels: int) -> None:  # type: ignore[no-untyped-def]
    plain = build(in_channels=channels).double()
    other = build(in_channels=channels, channels_last=True).double()
    other.load_state_dict(plain.state_dict())
    layouts = []
    for part in other.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(
                lambda _module, _args, out: layouts.append(
                    out.is_contiguous(memory_format=torch.channels_last) and not out.is_contiguous()
                )
            )
    images = torch.randn(4, channels, 16, 16, dtype=torch.float64)  # contiguous: the net converts by itself
    outs = [net(images) for net in (plain, other)]
    torch.testing.assert_close(*outs)
    for out in outs:
        out.square().sum().backward()
    for (key, p), q in zip(plain.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=key)
    # a map of 1 x 1 pixel is contiguous in both senses, so not all have to differ
    assert layouts[0]
    assert sum(layouts) > len(layouts) // 2


def test_compile_is_in_place() -> None:
    torch.manual_seed(0)
    plain = conv_net(1, 8, widths=(4, 4))
    compiled = copy.deepcopy(plain)
    compiled.compile(backend="eager")
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert conv_net(1, 8, widths=(4, 4), compile=True)._compiled_call_impl is not None
    assert copy.deepcopy(compiled)._compiled_call_impl is None
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(compiled(images), plain(images))


def test_sync_batch_norm_conversion_keeps_the_contract() -> None:
    net = nn.SyncBatchNorm.convert_sync_batchnorm(resnet())
    assert net.num_features == 512
    assert not any(type(part) is nn.BatchNorm2d for part in net.modules())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {}),
        ("vit_tiny_patch16_224", {"patch_size": 8}),
        ("mobilenetv3_small_050", {}),  # its output is wider than its own num_features
    ],
)
def test_timm(name: str, options: dict[str, int]) -> None:
    pytest.importorskip("timm")
    net = timm_model(name, in_channels=1, image_size=32, **options).eval()
    assert net(torch.randn(2, 1, 32, 32)).shape == (2, net.num_features)
    marked = {key for key, p in net.named_parameters() if getattr(p, "no_decay", False)}
    assert marked == ({"cls_token", "pos_embed"} if name.startswith("vit") else set())


def test_timm_errors() -> None:
    pytest.importorskip("timm")
    with pytest.raises(InputError, match="'resnet81'; nearest: resnet"):
        timm_model("resnet81")
    with pytest.raises(InputError, match="cannot build 'resnet10t' with colour=3"):
        timm_model("resnet10t", colour=3)


def test_timm_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"pip install 'contrast-learning\[timm\]'"):
        timm_model("resnet10t")


# sizes of images


def state(net: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(
    ("build", "fits", "fails"),
    [
        (conv_net, [4, 5, 64], [1, 3]),
        (resnet, [1, 16, 40], []),
        (lambda **options: vit(patch_size=8, **options), [32], [16, 24, 33, 64]),
    ],
)
def test_size_error_is_what_a_real_pass_says(build, fits, fails, compile: bool) -> None:  # type: ignore[no-untyped-def]
    net = build(in_channels=3, image_size=32, compile=compile)
    before, random = state(net), torch.get_rng_state()
    for size in fits:
        assert size_error(net, 3, size) is None
    for size in fails:
        reason = size_error(net, 3, size)
        assert reason
        assert "\n" not in reason
    assert torch.equal(random, torch.get_rng_state())
    assert net.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    plain = build(in_channels=3, image_size=32)
    for size in fits:
        assert plain(torch.randn(2, 3, size, size)).shape == (2, plain.num_features)
    for size in fails:
        with pytest.raises((AssertionError, RuntimeError)):
            plain(torch.randn(2, 3, size, size))


class ReadsItsPixels(nn.Module):
    """The meta device cannot run it at any size, so that nothing is known of the sizes it accepts."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, : 1 + int(images.sum().item() > 0)]


def test_views_that_the_encoder_does_not_accept_are_refused_with_both_sizes() -> None:
    net = vit(in_channels=1, patch_size=8, image_size=32)
    check_view_sizes(net, 1, 32, [32, 32])
    with pytest.raises(InputError, match=r"images of 32 pixels, but not views of 16: .*32.*16"):
        check_view_sizes(net, 1, 32, [32, 32, 16])
    with pytest.raises(InputError, match="views of 1:"):
        check_view_sizes(conv_net(1, 8), 1, 8, [1, 8])
    check_view_sizes(resnet(), 3, 32, [16, 96])
    check_view_sizes(ReadsItsPixels(), 3, 32, [16])


@pytest.mark.parametrize(
    ("name", "options"), [("vit_tiny_patch16_224", {"patch_size": 8}), ("swin_tiny_patch4_window7_224", {})]
)
def test_timm_interpolates_position_embeddings(name: str, options: dict[str, int]) -> None:
    """Views of other sizes work, and at the size of the images the values are those without interpolation."""
    timm = pytest.importorskip("timm")
    net = timm_model(name, image_size=32, **options).eval()
    check_view_sizes(net, 3, 32, [16, 48])
    for size in (16, 48):
        assert net(torch.randn(2, 3, size, size)).shape == (2, net.num_features)
    fixed = timm.create_model(name, num_classes=0, img_size=32, **options).eval()
    fixed.load_state_dict(net.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(net(images), fixed(images))
    with pytest.raises(InputError, match="not views of 16"):
        check_view_sizes(timm_model("mixer_s16_224", image_size=32), 3, 32, [16])


def test_timm_refuses_images_that_the_architecture_does_not_accept() -> None:
    pytest.importorskip("timm")
    with pytest.raises(InputError, match="'convnext_atto' does not accept images of 8 pixels"):
        timm_model("convnext_atto", image_size=8)
    with pytest.raises(InputError, match="but not views of 16"):
        check_view_sizes(timm_model("convnext_atto", image_size=32), 3, 32, [16])


@pytest.mark.parametrize("words", [["+views.size=4"], ["views.views=[{count: 2}, {count: 2, size: 4, blur: 0.0}]"]])
def test_the_command_refuses_views_that_the_encoder_does_not_accept(
    pretrain: Command, workplace: Path, capfd: pytest.CaptureFixture[str], words: list[str]
) -> None:
    tiny = [word for word in TINY if not word.startswith("encoder.")]
    assert pretrain(*tiny, "encoder=vit", *words) == 2
    error = capfd.readouterr().err
    assert "images of 8 pixels, but not views of 4" in error
    assert "Traceback" not in error
    assert not [path for path in (workplace / "runs").rglob("*") if path.is_file()]


def test_without_a_network_nothing_is_requested_again_and_again(
    pretrain: Command, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm", reason="pip install 'contrast-learning[timm]'")
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("contrast.network.is_reachable", lambda url: False)
    look_for_the_hub.cache_clear()
    tiny = [word for word in TINY if not word.startswith("encoder.")]
    assert pretrain(*tiny, "encoder=timm", "+encoder.pretrained=true") == 2
    look_for_the_hub.cache_clear()
    err = capfd.readouterr().err
    assert "timm cannot build 'convnext_atto'" in err
    assert "Retrying" not in err
    assert len(err.splitlines()) < 4
