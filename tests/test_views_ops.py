"""Each operation on a batch against torchvision's functional operation on each image, with the same parameters."""

import pytest
import torch
import torchvision.transforms.functional as F
from torchvision.transforms import InterpolationMode

from contrast.views.blur import blur_radius, gaussian_blur
from contrast.views.colour import apply_where_, greyscale, hue, jitter_, jitter_steps, solarise
from contrast.views.geometry import affine, resample, resample_each

SHAPES = [(3, 32, 32), (1, 8, 8), (3, 17, 29), (1, 31, 12), (3, 9, 40)]
KINDS = ["float", "uint8"]


def batch(shape, kind, count=6, seed=0):
    """Images with flat patches, saturated pixels and greys among the noise."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    pixels[:, :, :3, :3] = 0
    pixels[:, :, 3:5, :4] = 255
    pixels[:, :, :2, 5:7] = pixels[:, :1, :2, 5:7]
    return pixels if kind == "uint8" else pixels.float() / 255


def compare(ours, theirs, tolerance=2e-6):
    """`theirs` is a list of images. On uint8 torchvision cuts off fractions, of intermediate results too: one level."""
    theirs = torch.stack(theirs)
    if theirs.dtype == torch.uint8:
        assert ((ours * 255 + 1e-3).floor() - theirs).abs().max() <= 1
    else:
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def unit(pixels):
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def jittered(images, which, values):
    """`images` after one of the four operations of the jitter, with a factor per image."""
    factors = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(len(images), 1)
    factors[:, which] = values
    return jitter_(images.clone(), jitter_steps(factors, torch.arange(4).repeat(len(images), 1), images.shape[1]))


def resized_crop(images, boxes, size, flip):
    return resample(images, boxes.to(images.dtype), size, flip)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_colour_operations(shape, kind):
    pixels = batch(shape, kind)
    factors = torch.tensor([0.0, 0.3, 0.9, 1.0, 1.4, 1.8])
    for which, theirs in enumerate((F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)):
        expected = [theirs(i, f.item()) for i, f in zip(pixels, factors, strict=True)]
        compare(jittered(unit(pixels), which, factors), expected)
    shifts = torch.tensor([-0.5, -0.13, 0.0, 0.07, 0.31, 0.5])
    expected = [F.adjust_hue(i, s.item()) for i, s in zip(pixels, shifts, strict=True)]
    compare(jittered(unit(pixels), 3, shifts), expected)
    if shape[0] == 3:
        compare(hue(unit(pixels), shifts), expected)
        compare(greyscale(unit(pixels)), [F.rgb_to_grayscale(i, num_output_channels=3) for i in pixels])
    compare(solarise(unit(pixels)), [F.solarize(i, 128 if kind == "uint8" else 0.5) for i in pixels])


def test_hue_of_every_sector_and_of_grey():
    """All corners and edge midpoints of the colour cube: ties between channels are where sectors meet."""
    levels = torch.tensor([0.0, 0.5, 1.0])
    colours = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 27, 1)
    for shift in torch.linspace(-0.5, 0.5, 25):
        compare(hue(colours, shift[None]), [F.adjust_hue(colours[0], shift.item())])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [32, 13, 5])
def test_resized_crop(shape, size, kind):
    pixels = batch(shape, kind)
    height, width = shape[1:]
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(1, height + 1, (6,), generator=generator)
    columns = torch.randint(1, width + 1, (6,), generator=generator)
    rows[0], columns[0], rows[1], columns[1] = height, width, 1, 1
    top = (torch.rand(6, generator=generator) * (height - rows + 1)).long()
    left = (torch.rand(6, generator=generator) * (width - columns + 1)).long()
    boxes = torch.stack((top, left, rows, columns), dim=1)
    flip = torch.tensor([True, False] * 3)
    expected = [
        F.resized_crop(i, *b, [size, size], antialias=True) for i, b in zip(pixels, boxes.tolist(), strict=True)
    ]
    compare(resized_crop(unit(pixels), boxes, size, flip & False), expected)
    expected = [F.hflip(i) if on else i for i, on in zip(expected, flip, strict=True)]
    compare(resized_crop(unit(pixels), boxes, size, flip), expected)


def test_resized_crop_at_imagenet_size():
    pixels = batch((3, 250, 224), "float", count=2)
    boxes = [[3, 5, 201, 150], [0, 0, 250, 224]]
    expected = [F.resized_crop(i, *b, [224, 224], antialias=True) for i, b in zip(pixels, boxes, strict=True)]
    flip = torch.tensor([False, True])
    expected[1] = F.hflip(expected[1])
    compare(resized_crop(pixels, torch.tensor(boxes), 224, flip), expected, tolerance=3e-5)
    compare(resample_each(pixels, torch.tensor(boxes), 224, flip), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [1, 2, 5])
def test_gaussian_blur(shape, radius, kind):
    pixels = batch(shape, kind)
    sigma = torch.tensor([0.1, 0.4, 0.7, 1.0, 1.5, 2.0])
    expected = [F.gaussian_blur(i, [2 * radius + 1] * 2, [s.item()] * 2) for i, s in zip(pixels, sigma, strict=True)]
    compare(gaussian_blur(unit(pixels), sigma, radius), expected)


@pytest.mark.parametrize(("height", "width"), [(115, 170), (150, 60)])
def test_blur_of_large_images_by_blocks(height, width):
    """Taps beyond seven standard deviations are left out, and so is a part of the radius."""
    pixels, sigma = batch((3, height, width), "float", count=3), torch.tensor([0.1, 0.7, 1.9])
    expected = [F.gaussian_blur(i, [23, 23], [s.item()] * 2) for i, s in zip(pixels, sigma, strict=True)]
    compare(gaussian_blur(pixels, sigma, 11), expected)


def test_blur_radius_is_simclr_s():
    assert [2 * blur_radius(size) + 1 for size in (8, 32, 96, 224)] == [3, 3, 9, 23]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_affine(shape, kind):
    pixels = batch(shape, kind)
    angle = torch.tensor([0.0, 10.0, -37.5, 90.0, 180.0, 5.0])
    shift = torch.tensor([[0, 0], [0, 0], [2, -1], [1, 0], [0, 0], [-3, 2]])
    rows = list(zip(pixels, angle.tolist(), shift.tolist(), strict=True))
    expected = [F.affine(i, a, t, 1.0, [0.0], interpolation=InterpolationMode.BILINEAR) for i, a, t in rows]
    compare(affine(unit(pixels), angle, shift), expected, tolerance=3e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_jitter_in_every_order(shape):
    orders = torch.cartesian_prod(*[torch.arange(4)] * 4)
    orders = orders[[len(set(order)) == 4 for order in orders.tolist()]]  # 24 permutations
    images = batch(shape, "float", count=len(orders))
    generator = torch.Generator().manual_seed(2)
    factors = 0.3 + 1.4 * torch.rand(len(orders), 4, generator=generator)
    factors[:, 3] = torch.rand(len(orders), generator=generator) - 0.5
    factors[5] = torch.tensor([1.0, 1.0, 1.0, 0.0])
    operations = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    expected = []
    for image, order, factor in zip(images, orders.tolist(), factors.tolist(), strict=True):
        for which in order:
            image = operations[which](image, factor[which])
        expected.append(image)
    unchanged = images[5].clone()
    ours = jitter_(images, jitter_steps(factors, orders, shape[0]))
    compare(ours, expected, tolerance=1e-5)  # four roundings, and hue divides by the range of the channels
    torch.testing.assert_close(ours[5], unchanged, atol=2e-7, rtol=0)


def test_an_operation_applies_where_the_mask_is_true_only():
    def scaled(images, factor):
        return images * factor[:, None, None, None]

    images = torch.rand(5, 3, 4, 4)
    mask = torch.tensor([True, False, False, True, False])
    factor = torch.arange(5.0)
    expected = torch.where(mask[:, None, None, None], scaled(images, factor), images)
    assert torch.equal(apply_where_(images.clone(), mask, scaled, factor), expected)
    assert torch.equal(apply_where_(images.clone(), mask & False, scaled, factor), images)
    assert torch.equal(apply_where_(images.clone(), mask | True, scaled, factor), scaled(images, factor))
