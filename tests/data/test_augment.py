"""Crops: legal boxes, the documented odds, pixels as torchvision makes them, and nothing but the key decides."""

import math

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image
from torchvision.transforms import InterpolationMode

from dinov2_zoo.config import CropConfig
from dinov2_zoo.data.augment import View, apply_view, draw_box, draw_view, generator
from dinov2_zoo.data.crops import multi_crop
from dinov2_zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, eval_image, normalise, to_uint8

DRAWS = 4000
ODDS = {"abs": 4 * math.sqrt(0.25 / DRAWS)}  # four standard deviations of the widest share


def picture(width=90, height=70, seed=0):
    """Smooth colours with some noise: what blur, hue and resizing act on."""
    coarse = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(seed)) * 255
    pixels = tv.resize(coarse, [height, width], interpolation=InterpolationMode.BICUBIC)
    return Image.fromarray(pixels.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy())


def views(number, config=CropConfig(), width=500, height=375):  # noqa: B008
    return [draw_view(width, height, number, config, generator("test", i, number)) for i in range(DRAWS)]


def test_boxes_have_the_area_and_aspect_asked_for_and_lie_inside():
    for number, (low, high) in ((0, (0.32, 1.0)), (2, (0.05, 0.32))):
        shares, ratios = [], []
        for view in views(number):
            top, left, h, w = view.box
            assert 0 <= top <= 375 - h and 0 <= left <= 500 - w
            shares.append(h * w / (500 * 375))
            ratios.append(w / h)
        assert low * 0.98 <= min(shares) and max(shares) <= high * 1.02
        assert min(ratios) >= 0.73 and max(ratios) <= 1.36
        # Log-uniform, so as often narrow as wide; small boxes are never refused for want of room.
        if number == 2:
            assert sum(ratio < 1 for ratio in ratios) / DRAWS == pytest.approx(0.5, **ODDS)
            assert sum(shares) / DRAWS == pytest.approx((low + high) / 2, abs=0.01)


def test_boxes_reach_every_border():
    boxes = [view.box for view in views(2, width=40, height=30)]
    assert {0} == {min(top for top, *_ in boxes), min(left for _, left, *_ in boxes)}
    assert max(top + h for top, _, h, _ in boxes) == 30 and max(left + w for _, left, _, w in boxes) == 40


@pytest.mark.parametrize(("size", "box"), [((1000, 10), (0, 493, 10, 13)), ((10, 1000), (493, 0, 13, 10))])
def test_a_strip_gives_its_central_box_of_legal_aspect(size, box):
    numbers = iter([0.9] * 22)
    assert draw_box(*size, (0.32, 1.0), (3 / 4, 4 / 3), numbers) == box


def test_a_one_pixel_image_gives_crops():
    large, small, _ = multi_crop(
        Image.new("RGB", (1, 1), "red"), CropConfig(28, local_size=14), seed=0, epoch=0, sample_id=0
    )
    assert large.shape == (2, 3, 28, 28) and small.shape == (8, 3, 14, 14) and large.dtype == torch.uint8


@pytest.mark.parametrize(
    ("blur", "odds"), [("released", (0, 0.9, 0.5)), ("nominal", (1, 0.1, 0.5)), ("off", (0, 0, 0))]
)
def test_blur_comes_as_often_as_the_table_says(blur, odds):
    for number, share in enumerate(odds):
        drawn = [view.blur for view in views(number, CropConfig(blur=blur))]
        sigmas = [sigma for sigma in drawn if sigma is not None]
        assert len(sigmas) / DRAWS == pytest.approx(share, **(ODDS if 0 < share < 1 else {"abs": 0}))
        if sigmas:
            assert 0.1 <= min(sigmas) < 0.2 and 1.9 < max(sigmas) <= 2.0


@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_the_other_odds(number):
    drawn = views(number)
    assert sum(view.flip for view in drawn) / DRAWS == pytest.approx(0.5, **ODDS)
    assert sum(view.grayscale for view in drawn) / DRAWS == pytest.approx(0.2, **ODDS)
    assert sum(bool(view.jitter) for view in drawn) / DRAWS == pytest.approx(0.8, **ODDS)
    solarized = sum(view.solarize for view in drawn) / DRAWS
    assert solarized == (pytest.approx(0.2, **ODDS) if number == 1 else 0)


def test_jitter_has_four_parts_in_any_order_with_factors_over_their_ranges():
    jitters = [view.jitter for view in views(0) if view.jitter]
    assert len({tuple(name for name, _ in jitter) for jitter in jitters}) == 24
    ranges = {"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.8, 1.2), "hue": (-0.1, 0.1)}
    for name, (low, high) in ranges.items():
        factors = [dict(jitter)[name] for jitter in jitters]
        width = high - low
        assert low <= min(factors) < low + 0.02 * width and high - 0.02 * width < max(factors) <= high


def test_choices_can_be_switched_off_and_on():
    plain = CropConfig(flip=0.0, jitter=0.0, grayscale=0.0, solarize=0.0, blur="off")
    assert all(view == View(view.box, 224, False, (), False, None, False) for view in views(1, plain)[:200])
    full = CropConfig(flip=1.0, jitter=1.0, grayscale=1.0, solarize=1.0)
    assert all(view.flip and view.jitter and view.grayscale and view.solarize for view in views(1, full)[:200])


def test_a_plain_view_is_the_resized_box_and_each_choice_changes_it():
    pixels = to_uint8(picture())
    box = (5, 8, 50, 60)
    plain = apply_view(pixels, View(box, 28, False, (), False, None, False))
    cut = pixels[:, 5:55, 8:68]
    resized = tv.resize(cut, [28, 28], interpolation=InterpolationMode.BICUBIC, antialias=True)
    assert (plain == resized).all()
    assert (apply_view(pixels, View(box, 28, True, (), False, None, False)) == plain.flip(-1)).all()
    grey = apply_view(pixels, View(box, 28, False, (), True, None, False))
    assert (grey[0] == grey[1]).all() and (grey[1] == grey[2]).all() and grey.float().std() > 10
    inverted = apply_view(pixels, View(box, 28, False, (), False, None, True))
    assert (inverted == torch.where(plain >= 128, 255 - plain, plain)).all()
    for name, factor in (("brightness", 1.4), ("contrast", 0.6), ("saturation", 0.8), ("hue", 0.1)):
        assert (apply_view(pixels, View(box, 28, False, ((name, factor),), False, None, False)) != plain).any(), name


def test_crops_depend_on_their_key_and_on_all_of_it():
    config = CropConfig(global_size=28, local_size=14, local_count=3)
    key = {"seed": 1, "epoch": 2, "sample_id": 3}
    first = multi_crop(picture(), config, **key)
    torch.manual_seed(5)
    torch.rand(9)
    again = multi_crop(picture(), config, **key)
    assert all(torch.equal(a, b) for a, b in zip(first[:2], again[:2], strict=True))
    for name in key:
        other = multi_crop(picture(), config, **(key | {name: 7}))
        assert not any(torch.equal(a, b) for a, b in zip(first[:2], other[:2], strict=True)), name
    assert not torch.equal(first[0][0], first[0][1]) and not torch.equal(first[1][0], first[1][1])


def test_drawing_leaves_the_global_generator_alone_and_fewer_crops_are_the_same_crops():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    many = multi_crop(picture(), CropConfig(28, local_size=14, local_count=4), seed=0, epoch=0, sample_id=0)
    assert torch.equal(torch.get_rng_state(), before)
    none = multi_crop(picture(), CropConfig(28, local_size=14, local_count=0), seed=0, epoch=0, sample_id=0)
    assert torch.equal(many[0], none[0]) and none[1].shape == (0, 3, 14, 14)


def test_generators_of_neighbouring_keys_differ():
    first = {generator("crop", a, b, c).initial_seed() for a in range(8) for b in range(8) for c in range(8)}
    assert len(first) == 512
    assert generator("a", 11, 1).initial_seed() != generator("a", 1, 11).initial_seed()


def test_normalise_uses_imagenets_statistics():
    pixels = to_uint8(picture())
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    torch.testing.assert_close(normalise(pixels), (pixels / 255 - mean) / std)
    assert normalise(pixels).is_contiguous() and normalise(pixels[None]).shape == (1, 3, 70, 90)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (64, 64), (17, 400)])
def test_evaluation_resizes_the_short_side_and_cuts_the_middle(size):
    image = picture(*size)
    result = eval_image(image, 112)
    assert result.shape == (3, 112, 112)
    scale = 128 / min(size)
    resized = image.resize((int(size[0] * scale), int(size[1] * scale)), Image.Resampling.BICUBIC)
    left, top = round((resized.width - 112) / 2), round((resized.height - 112) / 2)
    slow = normalise(to_uint8(resized.crop((left, top, left + 112, top + 112))))
    assert (result - slow).abs().max() < 2.1 / 255 / 0.224  # PIL rounds its weights to 8 bits: two levels at most
