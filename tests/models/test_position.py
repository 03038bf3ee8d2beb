"""Resampled positions against bicubic interpolation written out, and against Pillow's."""

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2_zoo.models.position import resample_positions

SIDE = 5
# (rows, columns): smaller, larger, not square.
SHAPES = [(3, 3), (8, 8), (4, 7), (1, 2)]


def grid(side=SIDE, dtype=torch.float32):
    return torch.randn(1, side * side, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def cubic(distance, a=-0.75):
    """The cubic convolution kernel, with torch's `a`."""
    x = abs(distance)
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def sampling(stored, target, offset):
    """Matrix [target, stored] of weights: coordinate (i + 0.5) * stored / (target + offset) - 0.5, edges repeated."""
    weights = np.zeros((target, stored))
    for i in range(target):
        at = (i + 0.5) * stored / (target + offset) - 0.5
        for tap in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            weights[i, np.clip(tap, 0, stored - 1)] += cubic(at - tap)
    return weights


@pytest.mark.parametrize("rule", [(0.0, True), (0.0, False), (0.1, False)])
def test_the_stored_grid_is_returned_untouched(rule):
    stored = grid()
    assert resample_positions(stored, SIDE, SIDE, offset=rule[0], antialias=rule[1]) is stored


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_bicubic_with_the_offset_added_to_the_target(shape, offset):
    stored = grid(dtype=torch.float64)
    image = stored.reshape(SIDE, SIDE, 2).numpy()
    rows, columns = (sampling(SIDE, target, offset) for target in shape)
    expected = np.einsum("ri,cj,ijd->rcd", rows, columns, image).reshape(1, -1, 2)
    found = resample_positions(stored, *shape, offset=offset, antialias=False)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_antialiased_bicubic_is_pillows(shape):
    found = resample_positions(grid(), *shape, offset=0.0, antialias=True)
    for channel in range(2):
        image = Image.fromarray(grid()[0, :, channel].reshape(SIDE, SIDE).numpy())
        expected = np.asarray(image.resize(shape[::-1], Image.Resampling.BICUBIC)).ravel()
        np.testing.assert_allclose(found[0, :, channel], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [7, 16, 37])
def test_the_offset_never_changes_the_number_of_patches(side):
    stored = grid(side)
    for count in range(1, 100):
        shape = count, 100 - count
        assert resample_positions(stored, *shape, offset=0.1, antialias=False).shape == (1, shape[0] * shape[1], 2)


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_half_precision_loses_nothing_but_its_own_rounding(offset):
    half = grid(dtype=torch.bfloat16)
    found, single = (resample_positions(g, 3, 8, offset=offset, antialias=False) for g in (half, half.float()))
    assert found.dtype == torch.bfloat16 and torch.equal(found, single.bfloat16())
