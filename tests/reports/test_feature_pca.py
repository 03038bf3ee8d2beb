"""Pictures of features: one basis, one scale, so that equal colours mean equal features."""

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2_zoo.reports.feature_pca import GAP, HEADING, feature_image, feature_pca_grid, fit_colours


@pytest.fixture
def three_directions():
    """Features that vary along three known directions of 8, most along 5, then 0, then 3; the rest is a constant."""
    generator = torch.Generator().manual_seed(0)
    features = torch.full((500, 8), 4.0)
    for scale, channel in ((9.0, 5), (4.0, 0), (1.0, 3)):
        features[:, channel] += scale * torch.randn(500, generator=generator)
    return features


def test_components_are_the_directions_of_most_variance_in_order(three_directions):
    basis = fit_colours(three_directions)
    assert basis.components.abs().argmax(0).tolist() == [5, 0, 3]
    assert basis.components.max(0).values.min() > 0.99  # sign fixed: the largest entry is positive
    assert torch.allclose(basis.mean, three_directions.mean(0))


def test_one_odd_patch_does_not_set_the_scale(three_directions):
    odd = three_directions.clone()
    odd[0, 5] += 1000
    usual, with_odd = fit_colours(three_directions), fit_colours(odd)
    spread, spread_with_odd = usual.high - usual.low, with_odd.high - with_odd.low
    assert spread_with_odd[0] < 1.5 * spread[0]
    assert with_odd.colours(odd).amax() == 1 and with_odd.colours(odd).amin() == 0


def test_features_without_variation_do_not_divide_by_zero():
    assert torch.isfinite(fit_colours(torch.ones(10, 4)).colours(torch.ones(2, 4))).all()


def test_the_grid_keeps_its_orientation(three_directions):
    basis = fit_colours(three_directions)
    patches = torch.full((4, 8), 4.0)
    patches[1, 5] = 30.0  # top right: the first component at its end
    pixels = np.asarray(feature_image(patches, basis, 40))
    assert pixels[2, 37, 0] == 255 and pixels[2, 2, 0] < 200 and pixels[37, 37, 0] < 200


def test_equal_features_get_equal_colours_and_others_do_not(three_directions):
    maps = three_directions[:32].reshape(2, 16, 8)
    photos = [Image.new("RGB", (28, 28), colour) for colour in ("red", "blue")]
    sheet = feature_pca_grid(photos, maps, {"learnt": maps, "blind": maps.mean((0, 1)).expand_as(maps)}, tile=32)
    assert sheet.size == (4 * 32 + 3 * GAP, HEADING + 2 * 32 + GAP)
    pixels = np.asarray(sheet)

    def tile(row, column):
        top, left = HEADING + row * (32 + GAP), column * (32 + GAP)
        return pixels[top : top + 32, left : left + 32]

    assert (tile(1, 0) == (0, 0, 255)).all()
    assert (tile(0, 1) == tile(0, 2)).all() and (tile(1, 1) == tile(1, 2)).all()
    assert not (tile(0, 1) == tile(1, 1)).all()
    assert np.ptp(tile(0, 3).reshape(-1, 3), axis=0).max() == 0  # the mean everywhere is one flat colour


def test_a_student_with_another_grid_is_shown_at_the_same_size(three_directions):
    photo = [Image.new("RGB", (28, 28))]
    maps = three_directions[:20]
    sheet = feature_pca_grid(photo, maps[None, :16], {"student": maps[None, 16:20]}, tile=32)
    assert sheet.size == (3 * 32 + 2 * GAP, HEADING + 32)
