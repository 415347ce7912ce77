"""The composed views: distributions, determinism, the order of operations, errors."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
import torchvision.transforms.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torchvision.io import decode_image
from torchvision.transforms import RandomResizedCrop

from contrast.errors import InputError
from contrast.views import SimCLRViews, grid, natural, save_grid
from contrast.views.geometry import BOX_UNIFORMS, random_boxes
from contrast.views.simclr import UNIFORMS, augment

CONF = Path(__file__).parents[1] / "conf" / "views"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=12, channels=3, height=32, width=32, seed=0):
    return torch.randint(0, 256, (count, channels, height, width), generator=generator(seed), dtype=torch.uint8)


def distance(a, b):
    """Kolmogorov-Smirnov: the largest difference of the two empirical distribution functions."""
    points = torch.cat((a, b)).sort().values
    return max(
        abs(torch.searchsorted(a.sort().values, points, right=True) / len(a)
            - torch.searchsorted(b.sort().values, points, right=True) / len(b)).tolist()
    )  # fmt: skip


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(32, 32, (0.08, 1.0)), (224, 160, (0.2, 1.0)), (40, 8, (0.08, 1.0)), (8, 30, (0.8, 1.0)), (96, 96, (0.05, 0.14))],
)
def test_boxes_follow_torchvision_s_distribution(height, width, scale):
    count, ratio = 4000, (3 / 4, 4 / 3)
    ours = random_boxes(torch.rand(count, BOX_UNIFORMS, generator=generator()), height, width, scale, ratio)
    torch.manual_seed(1)
    image = torch.empty(3, height, width)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, scale, ratio) for _ in range(count)])
    top, left, rows, columns = ours.unbind(dim=1)
    assert torch.equal(ours, ours.round())
    assert ((rows >= 1) & (columns >= 1) & (top >= 0) & (left >= 0)).all()
    assert ((top + rows <= height) & (left + columns <= width)).all()
    quantities = (
        lambda b: b[:, 2] * b[:, 3],  # area
        lambda b: b[:, 3] / b[:, 2],  # aspect ratio
        lambda b: b[:, 0],
        lambda b: b[:, 1],
    )
    limit = 1.95 * math.sqrt(2 / count)  # exceeded by chance once in a thousand; the seeds are fixed
    for quantity in quantities:
        assert distance(quantity(ours.float()), quantity(theirs.float())) < limit


def test_fallback_is_torchvision_s_central_box():
    for height, width, ratio in (
        (40, 8, (0.75, 1.33)),
        (8, 40, (0.75, 1.33)),
        (9, 9, (0.75, 1.33)),
        (7, 31, (0.5, 2.0)),
    ):
        impossible = (20.0, 20.0)  # twenty times the image fits in no attempt
        expected = RandomResizedCrop.get_params(torch.empty(1, height, width), impossible, ratio)
        ours = random_boxes(torch.rand(3, BOX_UNIFORMS, generator=generator()), height, width, impossible, ratio)
        assert ours.tolist() == [list(map(float, expected))] * 3


def test_probabilities_ranges_and_orders():
    views = SimCLRViews(32, rotation=20, translation=0.1, strength=0.5, hue=0.4, solarise=0.3, blur=0.6)
    count = 20_000
    p = views.recipes[0].parameters(torch.rand(count, UNIFORMS, generator=generator()), 30, 40)
    for on, probability in ((p.flip, 0.5), (p.greyscale, 0.2), (p.blur, 0.6), (p.solarise, 0.3)):
        assert abs(on.float().mean() - probability) < 4 * math.sqrt(0.25 / count)
    jittered = p.factors[:, 3] != 0
    assert abs(jittered.float().mean() - 0.8) < 4 * math.sqrt(0.25 / count)
    assert torch.equal(p.factors[~jittered], torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(int((~jittered).sum()), 4))
    uniform = torch.linspace(0, 1, 1001)
    limit = 1.95 * math.sqrt(1 / 1001 + 1 / count)
    for values, low, high in (
        (p.factors[jittered, 0], 0.6, 1.4),
        (p.factors[jittered, 1], 0.6, 1.4),
        (p.factors[jittered, 2], 0.6, 1.4),
        (p.factors[jittered, 3], -0.2, 0.2),
        (p.sigma, 0.1, 2.0),
        (p.angle, -20, 20),
        (p.shift[:, 0], -4, 4),
        (p.shift[:, 1], -3, 3),
    ):
        assert low <= values.min()
        assert values.max() <= high
        assert distance((values - low) / (high - low), uniform) < limit
    orders = Counter(map(tuple, p.order.tolist()))
    assert len(orders) == 24
    assert max(abs(n - count / 24) for n in orders.values()) < 5 * math.sqrt(count / 24)


def reference(image, recipe, p, i):
    """One view of one image, operation by operation, by torchvision."""
    image = F.convert_image_dtype(image, torch.float32)
    box = [int(value) for value in p.boxes[i]]
    if recipe.rotation or recipe.translation:
        bilinear = F.InterpolationMode.BILINEAR
        image = F.affine(image, p.angle[i].item(), p.shift[i].tolist(), 1.0, [0.0], interpolation=bilinear)
    image = F.resized_crop(image, *box, [recipe.size] * 2, antialias=True)
    image = F.hflip(image) if p.flip[i] else image
    operations = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for which in p.order[i].tolist():
        image = operations[which](image, p.factors[i, which].item())
    image = F.rgb_to_grayscale(image, num_output_channels=len(image)) if p.greyscale[i] else image
    width = 2 * max(1, recipe.size // 20) + 1
    image = F.gaussian_blur(image, [width] * 2, [p.sigma[i].item()] * 2) if p.blur[i] else image
    return F.solarize(image, 0.5) if p.solarise[i] else image


@pytest.mark.parametrize("kind", ["uint8", "float"])
@pytest.mark.parametrize(("channels", "height", "width", "size"), [(3, 32, 32, 32), (1, 8, 8, 8), (3, 45, 37, 40)])
def test_views_are_torchvision_s_operations_in_simclr_s_order(channels, height, width, size, kind):
    pixels = images(40, channels, height, width)
    pixels = pixels if kind == "uint8" else pixels.float() / 255
    each = [{"solarise": 0.0}, {"rotation": 15.0, "translation": 0.1, "flip": 0.0}, {"blur": 1.0, "size": size // 2}]
    views = SimCLRViews(size, each, solarise=0.3)
    uniforms = views.draw(len(pixels), generator(3))
    for recipe, uniform, view in zip(views.recipes, uniforms, views(pixels, uniforms), strict=True):
        assert view.shape == (40, channels, recipe.size, recipe.size)
        p = recipe.parameters(uniform, height, width)
        expected = torch.stack([reference(image, recipe, p, i) for i, image in enumerate(pixels)])
        apart = (view - expected).abs()
        if recipe.solarise:  # a pixel within rounding of the threshold may fall on either side
            apart = torch.minimum(apart, (1 - view - expected).abs())
        assert apart.max() < 5e-5


def test_views_depend_on_their_own_image_and_uniforms_only():
    """A rank's part of a batch has the very same views as in the whole batch, bit for bit."""
    pixels = images(300)
    views = SimCLRViews(32, [{}, {"solarise": 0.2}, {"size": 16}], rotation=5)
    uniforms = views.draw(300, generator())
    whole = views(pixels, uniforms)
    assert all(map(torch.equal, whole, views(pixels, uniforms)))
    for start, stop in ((0, 150), (150, 300), (7, 8), (100, 173)):
        part = views(pixels[start:stop], uniforms[:, start:stop])
        assert all(torch.equal(a[start:stop], b) for a, b in zip(whole, part, strict=True))


def test_views_leave_their_input_alone_and_stay_in_range():
    pixels = images(64).float() / 255
    before = pixels.clone()
    views = SimCLRViews(32, 3, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, solarise=0.5)
    for view in views(pixels, views.draw(64, generator())):
        assert view.dtype == torch.float32
        assert view.min() >= 0
        assert view.max() <= 1
        assert not view.requires_grad
    assert torch.equal(pixels, before)


def test_nothing_switched_on_is_the_image():
    pixels = images(10, height=21, width=21)
    off = {"flip": 0.0, "jitter": 0.0, "greyscale": 0.0, "blur": 0.0}
    views = SimCLRViews(21, 1, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), **off)
    (view,) = views(pixels, views.draw(10, generator()))
    torch.testing.assert_close(view, pixels / 255.0, atol=1e-6, rtol=0)


def test_draw_is_a_function_of_the_generator():
    views = SimCLRViews(8, views=2)
    first = views.draw(5, generator(1))
    assert first.shape == (2, 5, UNIFORMS)
    assert torch.equal(first, views.draw(5, generator(1)))
    assert not torch.equal(first, views.draw(5, generator(2)))
    assert not torch.equal(first[0], first[1])


def test_views_ignore_autocast():
    pixels = images(8)
    views = SimCLRViews(32)
    uniforms = views.draw(8, generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = views(pixels, uniforms)
    assert all(map(torch.equal, cast, views(pixels, uniforms)))


def test_lists_of_views():
    views = SimCLRViews(32, [{"count": 2}, {"count": 3, "size": 16, "crop_scale": [0.05, 0.14]}], blur=0.1)
    assert views.sizes == [32, 32, 16, 16, 16]
    assert views.recipes[4].crop_scale == (0.05, 0.14)
    assert {recipe.blur for recipe in views.recipes} == {0.1}
    shapes = [view.shape[-1] for view in views(images(4), views.draw(4, generator()))]
    assert shapes == [32, 32, 16, 16, 16]
    byol = SimCLRViews(32, [{"blur": 1.0}, {"blur": 0.1, "solarise": 0.2}])
    assert [(recipe.blur, recipe.solarise) for recipe in byol.recipes] == [(1.0, 0.0), (0.1, 0.2)]
    assert SimCLRViews(1, blur=0.0).sizes == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "at least 1, not 0"),
        ({"size": 3.5}, "not 3.5"),
        ({"size": 1}, "1 x 1 pixels is too small to blur"),
        ({"views": 0}, "not 0"),
        ({"views": []}, "0 views"),
        ({"views": [{"blurr": 1.0}]}, "`blurr`; did you mean `blur`"),
        ({"blurr": 1.0}, "`blurr`; did you mean `blur`"),
        ({"views": [{"count": 0}]}, "not 0"),
        ({"flip": 1.5}, "flip .* not 1.5"),
        ({"blur": -0.1}, "blur .* not -0.1"),
        ({"greyscale": float("nan")}, "greyscale .* not nan"),
        ({"crop_scale": (0.5, 0.2)}, r"crop_scale .*\(0.5, 0.2\)"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.1, 1.2)}, r"\(0.1, 1.2\)"),
        ({"crop_ratio": (0.0, 1.0)}, "crop_ratio"),
        ({"sigma": (2.0, 0.1)}, "sigma"),
        ({"brightness": -1.0}, "brightness .* 0 .*not -1.0"),
        ({"contrast": float("inf")}, "contrast .*not inf"),
        ({"hue": 0.6}, "hue"),
        ({"hue": 0.4, "strength": 2.0}, "2.0 x 0.4"),
        ({"rotation": 200.0}, "rotation .* 180, not 200"),
        ({"translation": 1.5}, "translation"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        SimCLRViews(**{"size": 32, **arguments})


def test_bad_batches_are_refused():
    views = SimCLRViews(32)
    uniforms = views.draw(4, generator())
    with pytest.raises(InputError, match=r"\[4, 3, 0, 32\]"):
        views(images(4, height=0), uniforms)
    with pytest.raises(InputError, match=r"\[3, 32, 32\]"):
        views(images(4)[0], uniforms)
    with pytest.raises(InputError, match="int64"):
        views(images(4).long(), uniforms)
    with pytest.raises(InputError, match=r"\[2, 5, .* not \[2, 4"):
        views(images(5), uniforms)


def test_views_of_natural_images_follow_their_size():
    small, large = natural(32), natural(224, crop_scale=[0.2, 1.0])
    assert small.recipes == SimCLRViews(32, strength=0.5, blur=0.0).recipes
    assert large.recipes == SimCLRViews(224, crop_scale=[0.2, 1.0]).recipes


def test_all_eight_orientations_are_equally_likely_and_change_nothing_else():
    settings = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "jitter": 0, "greyscale": 0, "blur": 0}
    pixels = images(1).repeat(4000, 1, 1, 1)
    views = SimCLRViews(32, 1, **settings, vertical_flip=0.5, quarter_turns=0.75)
    (made,) = views(pixels, views.draw(4000, generator()))
    original = pixels[0] / 255
    known = [part.rot90(k, (1, 2)) for part in (original, original.flip(2)) for k in range(4)]
    found = Counter(next(i for i, each in enumerate(known) if torch.allclose(view, each, atol=1e-5)) for view in made)
    assert len(found) == 8
    assert all(abs(count - 500) < 100 for count in found.values())


def test_new_decisions_leave_the_random_numbers_of_the_others():
    plain, turned = SimCLRViews(32), SimCLRViews(32, vertical_flip=0.5)
    uniforms = plain.draw(6, generator())
    assert torch.equal(uniforms, turned.draw(6, generator()))
    older = torch.rand(2, 6, UNIFORMS - 2, generator=generator())
    assert torch.equal(uniforms[..., :-2], older)
    assert not torch.equal(plain(images(6), uniforms)[0], turned(images(6), uniforms)[0])


def test_images_of_any_number_of_channels_have_no_hue():
    """Every band of one value is a grey image, whose brightness and contrast change as those of a grey image do."""
    pixels = images(20, channels=1)
    settings = {"saturation": 0.0, "strength": 1.0}
    views = SimCLRViews(32, **settings)
    uniforms = views.draw(20, generator())
    for one, five in zip(views(pixels, uniforms), views(pixels.expand(-1, 5, -1, -1).clone(), uniforms), strict=True):
        assert torch.allclose(one.expand(-1, 5, -1, -1), five, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_shows_originals_and_views(channels, tmp_path):
    pixels = images(5, channels)
    views = SimCLRViews(32, [{}, {"size": 16}])
    picture = grid(pixels, views(pixels, views.draw(5, generator())), images=4, side=32)
    assert picture.shape == (3, 4 * 34 + 2, 3 * 34 + 2)
    assert torch.equal(picture[:channels, 2:34, 2:34], pixels[0])
    save_grid(tmp_path / "views.png", pixels, [], images=4, side=32)
    saved = decode_image(str(tmp_path / "views.png"))
    assert torch.equal(saved[:, 24:], grid(pixels, [], images=4, side=32))
    assert saved[:, :24].min() < 128  # the heading


@pytest.mark.parametrize(("side", "shown"), [(8, 128), (40, 160), (200, 200), (300, 256)])
def test_small_images_are_enlarged_without_blur_and_large_ones_keep_their_pixels(side, shown):
    pixels = torch.rand(2, 3, side, side, generator=generator())
    picture = grid(pixels, [pixels, pixels[..., ::2, ::2]])
    assert picture.shape == (3, 2 * (shown + 2) + 2, 3 * (shown + 2) + 2)
    if shown >= side:
        expected = (pixels[0] * 255).round().repeat_interleave(shown // side, 1).repeat_interleave(shown // side, 2)
        assert torch.equal(picture[:, 2 : 2 + shown, 2 : 2 + shown].float(), expected)


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_recipe_of_conf_builds_and_runs(file):
    views = instantiate(OmegaConf.load(file), size=32)
    made = views(images(4), views.draw(4, generator()))
    assert len(made) == len(views.sizes) >= 2
    assert made[0].shape == (4, 3, 32, 32)


def select(images, mask, operation, *parameters):
    """`apply_where_` as a GPU computes it."""
    return torch.where(mask[:, None, None, None], operation(images, *parameters), images)


def test_selecting_as_on_a_gpu_gives_the_same_views(monkeypatch):
    pixels = images(40)
    views = SimCLRViews(32, [{}, {"solarise": 0.5}])
    uniforms = views.draw(40, generator())
    picked = views(pixels, uniforms)
    monkeypatch.setattr("contrast.views.simclr.apply_where_", select)
    monkeypatch.setattr("contrast.views.colour.apply_where_", select)
    for a, b in zip(picked, views(pixels, uniforms), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_off_the_cpu_nothing_waits_for_a_value():
    """Meta tensors have no values: whatever would make the host read one fails."""
    views = SimCLRViews(32, [{}, {"solarise": 0.5, "size": 16}], rotation=10)
    uniforms = views.draw(6, generator())
    for recipe, uniform in zip(views.recipes, uniforms, strict=True):
        view = augment(images(6).to("meta"), uniform.to("meta"), recipe)
        assert (view.shape, view.device.type) == ((6, 3, recipe.size, recipe.size), "meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 8)])
def test_a_gpu_makes_the_same_views(channels, size):
    pixels = images(64, channels, size, size)
    views = SimCLRViews(size, [{}, {"blur": 1.0, "rotation": 20.0}])
    uniforms = views.draw(64, generator())
    expected = views(pixels, uniforms)
    views(pixels.cuda(), uniforms.cuda())  # the first call builds constants
    on_gpu = pixels.cuda(), uniforms.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = views(*on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(made, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=1e-4, rtol=0)
