"""Colours: as torchvision's on floats, the same for one crop as for a batch, and no device is waited for.

Tolerance between worker and device: one level of 255 where a value lies between two, for both round once.
"""

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch._subclasses.fake_tensor import FakeTensorMode

from dinov2_zoo.config import CropConfig, LoaderConfig
from dinov2_zoo.data import colour
from dinov2_zoo.data.augment import draw_view, generator
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.colour import ColourPlan, colour_one
from dinov2_zoo.data.device import ready
from dinov2_zoo.data.loader import train_loader
from dinov2_zoo.data.sources import open_source

EXACT = {"atol": 1e-3, "rtol": 0.0}  # of 255


def colours():
    """Crops with every combination of 16 levels, greys and full colours too."""
    levels = torch.arange(0, 256, 17, dtype=torch.float32)
    return torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij")).reshape(1, 3, 64, 64)


def factors(*values):
    return torch.tensor(values).view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("name", "theirs", "values"),
    [
        ("brightness", tv.adjust_brightness, (0.6, 1.0, 1.4)),
        ("contrast", tv.adjust_contrast, (0.6, 1.0, 1.4)),
        ("saturation", tv.adjust_saturation, (0.8, 1.0, 1.2)),
        ("hue", tv.adjust_hue, (-0.33, -0.1, 0.0, 0.03, 0.1, 0.33)),
        ("grey", lambda pixels, _: tv.rgb_to_grayscale(pixels, 3), (0.0,)),
        ("blur", lambda pixels, sigma: tv.gaussian_blur(pixels, [9, 9], [sigma, sigma]), (0.1, 0.6, 2.0)),
        ("solarise", lambda pixels, _: tv.solarize(pixels, 128 / 255), (0.0,)),
    ],
)
def test_each_operation_is_torchvisions_on_floats(name, theirs, values):
    many = colours().expand(len(values), -1, -1, -1).clone()
    many += torch.arange(len(values)).view(-1, 1, 1, 1) % 2  # not all alike
    many.clamp_(max=255)
    expected = torch.stack([255 * theirs(crop / 255, value) for crop, value in zip(many, values, strict=True)])
    torch.testing.assert_close(colour.OPERATIONS[name](many, factors(*values)), expected, **EXACT)


def drawn(count, view=1):
    config = CropConfig(jitter=0.8, grayscale=0.3, solarize=0.4, blur="nominal" if view == 0 else "released")
    return [draw_view(100, 100, view, config, generator("colour", i)).colours() for i in range(count)]


def test_a_batch_gets_what_each_crop_would_get_alone():
    steps = drawn(40)
    steps[::7] = [{}] * len(steps[::7])
    crops = torch.randint(0, 256, (40, 3, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    crops = torch.nn.functional.interpolate(crops.float(), size=32, mode="bilinear").round().to(torch.uint8)
    alone = torch.stack([colour_one(*pair) for pair in zip(crops, steps, strict=True)])
    together = ColourPlan.of(steps)(crops.float())
    apart = (together - alone.float()).abs()
    assert apart.max() <= 1 and (apart > 0).float().mean() < 1e-3
    changed = (together != crops.float()).flatten(1).any(1)
    assert changed.tolist() == [bool(each) for each in steps] and 0 < changed.float().mean() < 1
    seen = {name for each in steps for name, _ in each.values()}
    assert seen == set(colour.OPERATIONS)
    assert torch.equal(ColourPlan.of([{}, {}])(crops[:2].float()), crops[:2].float())


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_gives_the_same_pixels_whoever_does_the_colours(workers):
    source, crops = open_source("package:photos/train"), CropConfig(global_size=56, local_size=28, local_count=3)
    read = {"seed": 0, "steps": 2}
    by = {
        who: list(train_loader(source, crops, LoaderConfig(5, workers, colours=who), **read))
        for who in ("workers", "device", "auto")
    }
    level = 1 / 255 / 0.224
    for mine, theirs, auto in zip(*by.values(), strict=True):
        assert torch.equal(mine.sample_ids, theirs.sample_ids) and torch.equal(mine.global_crops, auto.global_crops)
        for one, other in zip(mine.groups(), theirs.groups(), strict=True):
            assert one.is_contiguous() and other.is_contiguous() and other.dtype == torch.float32
            apart = (one - other).abs()
            assert apart.max() < 1.02 * level and (apart > 0.1 * level).float().mean() < 1e-3


def test_mixed_crops_get_their_colours_before():
    source, crops = open_source("package:photos/train"), CropConfig(28, local_size=14, local_count=1, mix=0.5)
    one, other = (
        next(iter(train_loader(source, crops, LoaderConfig(5, 0, colours=who), seed=0, steps=1)))
        for who in ("workers", "device")
    )
    assert torch.equal(one.global_crops, other.global_crops) and torch.equal(one.local_crops, other.local_crops)


def test_a_gpu_does_colours_unless_they_are_asked_of_others_or_crops_are_mixed():
    plain, mixed = CropConfig(), CropConfig(mix=0.5)
    by = {
        (asked, device): LoaderConfig(colours=asked).colours_by(device, plain)
        for asked in ("auto", "workers", "device")
        for device in ("cuda", "cpu")
    }
    assert [who for who, found in by.items() if found == "device"] == [
        ("auto", "cuda"),
        ("device", "cuda"),
        ("device", "cpu"),
    ]
    assert LoaderConfig(colours="device").colours_by("cuda", mixed) == "workers"


def test_no_operation_waits_for_a_gpu():
    """A fake tensor on CUDA raises where a value, or a shape that depends on one, is asked for."""
    plans = ColourPlan.of(drawn(12)), ColourPlan.of(drawn(18, view=2))
    with FakeTensorMode(allow_non_fake_inputs=False):
        sizes = (2, 6, 3, 28, 28), (3, 6, 3, 14, 14)
        crops = [torch.empty(size, dtype=torch.uint8, device="cuda") for size in sizes]
        fake = [plan.map(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")) for plan in plans]
        ids = torch.empty(6, dtype=torch.int64, device="cuda")
        made = ready(Batch(*crops, ids, ids, colours=tuple(fake)))
    for crops, size in zip(made.groups(), sizes, strict=True):
        assert crops.device.type == "cuda" and crops.dtype == torch.float32 and crops.shape == size
        assert crops.is_contiguous()
