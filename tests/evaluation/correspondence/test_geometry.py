"""Geometry of views: flips and turns by hand, views inside their photo, pixels where the map says they are."""

import pytest
import torch

from dinov2_zoo.config.correspondence import ViewsConfig
from dinov2_zoo.evaluation.correspondence.geometry import (
    UNIT,
    between,
    draw_quads,
    homography,
    patch_centres,
    render,
    transfer,
)

POINT = torch.tensor([[0.2, 0.3]], dtype=torch.float64)
BASE = UNIT * 100 + 50


def place(first, second):
    return transfer(POINT, between(first, second))[0].tolist()


def test_flips_turns_and_crops_by_hand():
    assert place(BASE, BASE) == pytest.approx([0.2, 0.3])
    assert place(BASE, BASE[[1, 0, 3, 2]]) == pytest.approx([0.8, 0.3])  # left and right
    assert place(BASE, BASE[[3, 2, 1, 0]]) == pytest.approx([0.2, 0.7])  # above and below
    assert place(BASE, BASE[[1, 2, 3, 0]]) == pytest.approx([0.3, 0.8])  # a quarter turn
    assert place(BASE, UNIT * 50 + 50) == pytest.approx([0.4, 0.6])  # the upper left quarter
    assert place(BASE, UNIT * 100 + torch.tensor([60.0, 40.0])) == pytest.approx([0.1, 0.4])


def test_four_points_go_where_they_are_sent_and_back():
    draw = torch.Generator().manual_seed(0)
    target = UNIT + 0.2 * torch.rand(4, 2, generator=draw, dtype=torch.float64)
    there, back = homography(UNIT, target), homography(target, UNIT)
    assert torch.allclose(transfer(UNIT, there), target)
    inner = torch.rand(20, 2, generator=draw, dtype=torch.float64)
    assert torch.allclose(transfer(transfer(inner, there), back), inner)


def test_what_lies_beyond_the_horizon_is_infinitely_far():
    aslant = homography(UNIT, torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.6, 0.5], [0.4, 0.5]]))
    assert transfer(torch.tensor([[0.5, -0.5]], dtype=torch.float64), aslant).isinf().all()
    assert transfer(torch.tensor([[0.5, 0.5]], dtype=torch.float64), aslant).isfinite().all()


@pytest.mark.parametrize("size", [(300, 200), (90, 400), (64, 64)])
@pytest.mark.parametrize("config", [ViewsConfig(), ViewsConfig(rotation=180, perspective=0.2, scale=(0.9, 1.0))])
def test_views_lie_in_the_photo_overlap_and_are_always_the_same(size, config):
    mirrored = 0
    for seed in range(60):
        first, second = draw_quads(*size, config, torch.Generator().manual_seed(seed))
        for quad in (first, second):
            assert (quad >= -1e-9).all() and (quad <= torch.tensor(size) + 1e-9).all()
        truth = transfer(patch_centres(8).double(), between(first, second))
        assert ((truth > 0) & (truth < 1)).all(1).float().mean() > 0.1
        x, y = second.unbind(1)
        mirrored += (x * y.roll(-1) - y * x.roll(-1)).sum() < 0
        assert torch.equal(draw_quads(*size, config, torch.Generator().manual_seed(seed))[1], second)
    assert 15 < mirrored < 45
    sides = first[1, 0] - first[0, 0], first[3, 1] - first[0, 1]
    assert sides[0] == pytest.approx(sides[1].item()) and config.scale[0] * min(size) <= sides[0] <= min(size)


def test_a_second_view_without_slant_is_as_large_as_drawn():
    config = ViewsConfig(scale=(0.5, 0.5), rotation=0, perspective=0)
    first, second = draw_quads(300, 200, config, torch.Generator().manual_seed(0))
    for quad in (first, second):
        assert (quad.amax(0) - quad.amin(0)).tolist() == pytest.approx([100, 100])


def test_large_photos_are_smoothed_before_they_are_made_small():
    checks = ((torch.arange(800)[:, None] + torch.arange(800)) % 2 * 255).to(torch.uint8).expand(3, -1, -1)
    quad = UNIT * 700 + torch.tensor([50.3, 20.1], dtype=torch.float64)
    assert (render(checks, quad, 70).float() - 127.5).abs().max() < 30


@pytest.mark.parametrize("large", [1, 4])
def test_pixels_are_where_the_geometry_says(large):
    """A photo whose red says x and green says y: both views must show the same colour at the same point."""
    width, height = 160 * large, 120 * large
    x = (torch.arange(width) + 0.5) / width * 255
    y = (torch.arange(height) + 0.5) / height * 255
    colours = [x.expand(height, -1), y[:, None].expand(-1, width), torch.zeros(height, width)]
    photo = torch.stack(colours).round().to(torch.uint8)
    for seed in range(12):
        first, second = draw_quads(width, height, ViewsConfig(), torch.Generator().manual_seed(seed))
        one, two = (render(photo, quad, 70).float() for quad in (first, second))
        centres = patch_centres(70).double()
        truth = transfer(centres, between(first, second))
        inside = ((truth > 0.05) & (truth < 0.95)).all(1) & ((centres > 0.05) & (centres < 0.95)).all(1)
        column, row = (truth[inside] * 70).long().unbind(1)
        difference = (one.flatten(1)[:2, inside] - two[:2, row, column]).abs()
        assert difference.max() < 4  # of 255; a pixel of a view is up to 2 of these
