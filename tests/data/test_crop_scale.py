"""How small a JPEG may be decoded: never so that a crop loses detail, and whatever the other crops are."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2_zoo.config import CropConfig
from dinov2_zoo.data.augment import draw_view, generator
from dinov2_zoo.data.crops import MARGIN, multi_crop, spare_scale

SMALL = CropConfig(global_size=56, local_size=28, local_count=2, jitter=0, grayscale=0, solarize=0, blur="off")


@pytest.mark.parametrize(
    ("size", "scale"), [((500, 375), 1), ((2000, 1500), 1), ((4000, 3000), 2), ((6000, 4000), 4), ((12000, 9000), 8)]
)
def test_the_scale_of_usual_photos(size, scale):
    assert spare_scale(*size, CropConfig()) == spare_scale(*reversed(size), CropConfig()) == scale
    assert spare_scale(*size, CropConfig(local_count=0)) == scale  # a crop depends on no other
    assert spare_scale(*size, CropConfig(global_size=518, local_size=252)) <= scale


@pytest.mark.parametrize("size", [(4000, 3000), (6000, 4000), (12000, 900), (900, 12000), (3000, 20)])
def test_no_box_has_fewer_pixels_than_the_margin_asks_for(size):
    config = CropConfig()
    scale = spare_scale(*size, config)
    for number in (0, 2):
        for key in range(500):
            view = draw_view(size[0] // scale, size[1] // scale, number, config, generator("scale", key))
            assert scale == 1 or min(view.box[2:]) > 0.97 * MARGIN * view.size


def photo(side=1600):
    """Structures of many sizes, none of them finer than what the crops below can show."""
    rows, columns = np.mgrid[:side, :side]
    waves = [128 + 60 * np.sin(rows / a) * np.cos(columns / b) + 40 * np.sin((rows + columns) / c)
             for a, b, c in ((40, 90, 60), (90, 50, 45), (70, 70, 130))]  # fmt: skip
    buffer = io.BytesIO()
    Image.fromarray(np.stack(waves, -1).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_crops_of_a_small_copy_are_those_of_the_whole(monkeypatch):
    raw, key = photo(), {"seed": 0, "epoch": 0}
    assert spare_scale(1600, 1600, SMALL) == 4
    small = [multi_crop(raw, SMALL, **key, sample_id=i) for i in range(10)]
    fewer = multi_crop(raw, dataclasses.replace(SMALL, local_count=0), **key, sample_id=3)
    assert torch.equal(fewer.large, small[3].large)
    monkeypatch.setattr("dinov2_zoo.data.crops.spare_scale", lambda *_: 1)
    whole = [multi_crop(raw, SMALL, **key, sample_id=i) for i in range(10)]
    for one, other in zip(small, whole, strict=True):
        for a, b in ((one.large, other.large), (one.small, other.small)):
            assert (a.float() - b.float()).abs().mean() < 2.5  # boxes lie on whole pixels of the small copy
            assert b.float().std() > 20
