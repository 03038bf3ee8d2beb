"""Stochastic depth's draws: a share of a step is cut from the same draw, wherever it is cut."""

import pytest
import torch

from dinov2_zoo.data.drop_path import STRATUM, DropPath, Share, draw_kept

VIEWS, OF = (2, 3), 40
CONFIG = DropPath(rate=0.4, depth=3, seed=1)


def dense(kept, views, images):
    """What each sequence counts: [branches, views, images], 0 where it is left out."""
    found = torch.zeros(len(kept.counts), views * images)
    numbers, scales = kept.sequences.split(kept.counts), kept.scale.split(kept.counts)
    for row, places, scale in zip(found, numbers, scales, strict=True):
        assert (places.diff() > 0).all()
        row[places] = scale
    return found.unflatten(1, (views, images))


def share(first, images, *, of=OF, config=CONFIG, step=3):
    kept = draw_kept(config, VIEWS, Share(step, first, images, of))
    return [dense(group, views, images) for group, views in zip(kept, VIEWS, strict=True)]


@pytest.mark.parametrize("images", [1, 4, 5, 8, 20])
def test_parts_of_a_step_are_cut_from_one_draw(images):
    parts = [share(first, images) for first in range(0, OF, images)]
    for group, whole in zip(zip(*parts, strict=True), share(0, OF), strict=True):
        assert torch.equal(torch.cat(group, dim=2), whole)


def test_of_every_stratum_the_official_number_stays_and_makes_up_for_the_others():
    for whole, views in zip(share(0, OF), VIEWS, strict=True):
        for stratum in whole.split(STRATUM, dim=2):  # 16, 16 and 8 images
            sequences = views * stratum.shape[2]
            kept = int(sequences * 0.6)
            assert ((stratum > 0).sum((1, 2)) == kept).all()
            torch.testing.assert_close(stratum.sum((1, 2)), torch.full((6,), float(sequences)))


def test_shares_of_whole_strata_have_the_same_shapes_in_all_branches_and_steps():
    for step in range(3):
        for first in range(0, 96, 48):
            for group, views in zip(draw_kept(CONFIG, VIEWS, Share(step, first, 48, 96)), VIEWS, strict=True):
                assert set(group.counts) == {3 * int(views * STRATUM * 0.6)}


def test_a_branch_without_a_kept_sequence_runs_on_one_that_counts_nothing():
    config = DropPath(rate=0.9, depth=20, seed=0)
    kept = [draw_kept(config, [1], Share(0, first, 1, 8))[0] for first in range(8)]
    assert all(group.counts == (1,) * 40 and not group.sequences.any() for group in kept)
    scales = torch.stack([group.scale for group in kept])
    assert ((scales == 8).sum(0) == 1).all() and ((scales == 0).sum(0) == 7).all()


def test_draws_follow_from_seed_step_and_place_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = share(0, OF)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert all(torch.equal(a, b) for a, b in zip(first, share(0, OF), strict=True))
    for other in (share(0, OF, step=4), share(0, OF, config=DropPath(0.4, 3, seed=2))):
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    for group in first:  # strata draw apart
        assert not torch.equal(group[:, :, :STRATUM], group[:, :, STRATUM : 2 * STRATUM])
