"""Masks: as many crops as asked for, ratios spread evenly over the batch, blocks, and never a patch too many."""

import math

import pytest
import torch

from dinov2_zoo.config import MaskConfig
from dinov2_zoo.data.augment import generator
from dinov2_zoo.data.masks import _add_block, block_mask, check_grid, stratified_ratios
from dinov2_zoo.errors import ConfigError

OFFICIAL = MaskConfig()
EXACT = MaskConfig(exact=True)
RATIOS = torch.linspace(0.1, 0.5, 200).tolist()


def masks(side, config=OFFICIAL, ratios=RATIOS):
    return [block_mask(side, ratio, config, generator("test", i)).view(side, side) for i, ratio in enumerate(ratios)]


@pytest.mark.parametrize("crops", [1, 2, 7, 64, 4096])
@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_exactly_the_share_of_the_crops_gets_a_ratio_each_from_its_own_bin(crops, share):
    ratios = stratified_ratios(crops, MaskConfig(share=share, ratios=(0.2, 0.4)), generator(crops))
    drawn = ratios[ratios > 0].double().sort().values
    count = int(crops * share)
    assert ratios.shape == (crops,) and len(drawn) == count
    edges = 0.2 + 0.2 * torch.arange(count + 1, dtype=torch.float64) / max(1, count)
    assert (drawn > edges[:-1] - 1e-6).all() and (drawn < edges[1:] + 1e-6).all()


def test_every_batch_hides_about_the_same_and_ratios_are_uniform_in_their_bins():
    drawn = torch.stack([stratified_ratios(64, OFFICIAL, generator(i)) for i in range(400)])
    batches = drawn[drawn > 0].view(400, 32)
    width = 0.4 / 32
    # The mean of 32 draws, one a bin, varies 32 times less than that of 32 free draws.
    assert batches.mean(1).std().item() == pytest.approx(width / math.sqrt(12 * 32), rel=0.2)
    assert batches.mean().item() == pytest.approx(0.3, abs=1e-4)
    places = (batches.sort(1).values - 0.1) / width - torch.arange(32)
    assert places.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / places.numel()))
    assert places.std().item() == pytest.approx(math.sqrt(1 / 12), rel=0.03)


def test_each_crop_is_masked_equally_often_and_equally_much():
    drawn = torch.stack([stratified_ratios(8, OFFICIAL, generator(i)) for i in range(2000)])
    assert ((drawn > 0).float().mean(0) - 0.5).abs().max() < 4.5 * math.sqrt(0.25 / 2000)
    means = drawn.sum(0) / (drawn > 0).sum(0)
    assert (means - 0.3).abs().max() < 4.5 * 0.4 / math.sqrt(12 * 1000)


@pytest.mark.parametrize("side", [7, 14, 16, 37])
def test_a_mask_is_never_over_its_target_and_at_most_a_little_under(side):
    short = [int(side * side * ratio) - int(mask.sum()) for ratio, mask in zip(RATIOS, masks(side), strict=True)]
    assert min(short) >= 0 and max(short) <= 3 and sum(short) / len(short) < 0.5
    assert any(short), "only the exact variant hits every target"


@pytest.mark.parametrize("side", [4, 7, 16])
def test_the_exact_variant_completes_the_same_blocks_to_the_target(side):
    for ratio, exact, plain in zip(RATIOS, masks(side, EXACT), masks(side), strict=True):
        assert exact.sum() == int(side * side * ratio)
        assert (exact | plain).equal(exact)


@pytest.mark.parametrize("ratio", [0.15, 0.3, 0.5])
def test_hidden_patches_lie_together(ratio):
    side, neighbours, hidden = 16, 0, 0
    for mask in masks(side, ratios=[ratio] * 200):
        neighbours += int((mask[:, 1:] & mask[:, :-1]).sum() + (mask[1:] & mask[:-1]).sum())
        hidden += int(mask.sum())
    # Of single patches hidden by chance, each has `ratio` hidden ones among its neighbours to the right and below.
    by_chance = ratio * 2 * (side - 1) / side
    assert neighbours / hidden > by_chance + 0.5 * (2 - by_chance)


def test_a_block_is_a_rectangle_inside_the_grid_of_the_documented_areas_and_aspects():
    side, left, source = 16, 100, generator("blocks")
    heights, widths, corners = [], [], []
    for _ in range(2000):
        mask = torch.zeros(side, side, dtype=torch.bool)
        added = _add_block(mask, left, OFFICIAL, source)
        (rows,), (columns,) = (mask.any(dim).nonzero(as_tuple=True) for dim in (1, 0))
        height, width = len(rows), len(columns)
        assert mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
        assert added == height * width == mask.sum()
        heights.append(height)
        widths.append(width)
        corners.append((int(rows.min()), int(columns.min()), int(rows.max()), int(columns.max())))
    areas = torch.tensor(heights) * torch.tensor(widths)
    aspects = torch.tensor(heights) / torch.tensor(widths)
    # Sides are rounded: areas and aspects reach a little beyond what was drawn, but never beyond what is left to hide.
    assert areas.min() <= 5 and 90 <= areas.max() <= left and max(heights + widths) < side
    assert 0.2 <= aspects.min() < 0.33 and 3.0 < aspects.max() <= 5.0
    assert abs(int((aspects > 1).sum()) - int((aspects < 1).sum())) < 4.5 * math.sqrt(2000)
    # Uniform up to 100, but those that would stretch over the grid or hide too much are drawn again.
    assert areas.float().mean().item() == pytest.approx(50, abs=4)
    top, start, bottom, end = zip(*corners, strict=True)
    assert min(top) == min(start) == 0 and max(bottom) == max(end) == side - 1


def test_a_block_hides_at_most_half_of_the_grid_but_for_rounding():
    source = generator("half")
    areas = [_add_block(torch.zeros(16, 16, dtype=torch.bool), 256, OFFICIAL, source) for _ in range(1000)]
    assert 115 < max(areas) <= 128 * 1.07


def test_the_last_blocks_may_be_smaller_than_the_smallest():
    # Official: the area is drawn between 4 and what is left, also where less than 4 are left.
    counts = [int(mask.sum()) for mask in masks(14, ratios=[2.5 / 196] * 100)]
    assert max(counts) == 2 and sum(counts) > 150


def test_nothing_and_everything_can_be_hidden():
    assert not block_mask(16, 0.0, EXACT, generator(0)).any()
    assert block_mask(16, 1.0, EXACT, generator(0)).all()


@pytest.mark.parametrize("config", [OFFICIAL, EXACT])
def test_masks_follow_from_their_generator_alone(config):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = block_mask(16, 0.3, config, generator(1)), stratified_ratios(64, config, generator(1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    again = block_mask(16, 0.3, config, generator(1)), stratified_ratios(64, config, generator(1))
    other = block_mask(16, 0.3, config, generator(2)), stratified_ratios(64, config, generator(2))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_grids_without_room_for_masks_are_refused_with_a_remedy():
    for side in (4, 7, 8, 16, 37):
        check_grid(side, OFFICIAL)
    for side, config, words in (
        (2, MaskConfig(ratios=(0.5, 0.5)), "do not fit inside 2 x 2: lower masks.smallest_block"),
        (1, MaskConfig(ratios=(1.0, 1.0), smallest_block=1), "do not fit inside 1 x 1"),
        (3, OFFICIAL, "Hiding 10% of 3 x 3 patches hides none: raise masks.ratios"),
        (16, MaskConfig(ratios=(0.003, 0.5)), "raise masks.ratios or crops.global_size"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_grid(side, config)


@pytest.mark.parametrize(
    "wrong",
    [{"share": 0.0}, {"share": 1.1}, {"ratios": (0.0, 0.5)}, {"ratios": (0.5, 0.1)}, {"ratios": (0.5, 1.1)},
     {"smallest_block": 0}, {"aspect": 0.0}, {"aspect": 1.5}],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"masks.{next(iter(wrong))}"):
        MaskConfig(**wrong)
