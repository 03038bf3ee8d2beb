"""Stochastic depth: a subset gives what computing everyone and dropping gives; draws are fair, apart and repeatable."""

import math
from unittest import mock

import pytest
import torch

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.data.drop_path import DropPath, Share, draw_kept
from dinov2_zoo.models import block
from dinov2_zoo.models.packing import Packing
from dinov2_zoo.models.stochastic_depth import naive_residual, subset_residual, subsets_of

IMAGES = 3
TWO_GROUPS = Packing(((2 * IMAGES, 5), (4 * IMAGES, 3)))
DRAWS = 2000


def draw(images=IMAGES, views=(2, 4), packing=TWO_GROUPS, *, depth=1, rate=0.4):
    return subsets_of(draw_kept(DropPath(rate, depth, seed=7), views, Share(0, 0, images, images)), packing)


def kept_sequences(rows, packing=TWO_GROUPS):
    """Whether each sequence is among some rows [..., kept tokens]: bool [..., sequences]."""
    lengths = torch.tensor(packing.lengths)
    tokens = torch.zeros(*rows.shape[:-1], int(lengths.sum()), dtype=torch.bool).scatter_(-1, rows, True)
    return tokens[..., lengths.cumsum(0) - lengths]


def many_draws():
    """Which sequences stay in many independent draws, for attention and for feed-forward: bool [draws, sequences]."""
    branches = zip(*draw(depth=DRAWS), strict=True)  # as many blocks
    return [kept_sequences(torch.stack([subset.rows for subset in branch])) for branch in branches]


# ---------------------------------------------------------------- subset against naive


def images_of(sizes, dtype=torch.float64, count=IMAGES):
    source = torch.Generator().manual_seed(0)
    return [torch.randn(views * count, 3, side, side, generator=source, dtype=dtype) for views, side in sizes]


def outputs_and_gradients(model, images, masks, subsets):
    model.zero_grad()
    outputs = model.forward_features(images, masks, subsets)
    kinds = ("x_norm_clstoken", "x_norm_patchtokens", "x_prenorm")
    sum(output[kind].sin().mean() for output in outputs for kind in kinds).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return [output["x_prenorm"].detach() for output in outputs], gradients


@pytest.mark.parametrize("sizes", [[(2, 28)], [(2, 28), (4, 14)]], ids=["plain", "two groups"])
@pytest.mark.parametrize("kind", [{}, {"num_registers": 4, "ffn": "swiglu"}], ids=["mlp", "reg4, swiglu"])
def test_a_subset_equals_computing_everyone_and_dropping_with_its_gradient(lively, sizes, kind):
    model = lively(ModelConfig(24, 3, 3, patch_size=7, img_size=28, **kind), dtype=torch.float64)
    images = images_of(sizes)
    masks = [torch.rand(2 * IMAGES, 16, generator=torch.Generator().manual_seed(1)) < 0.3, None][: len(sizes)]
    subsets = draw(views=[views for views, _ in sizes], packing=model.packing(images), depth=3)
    fast = outputs_and_gradients(model, images, masks, subsets)
    with mock.patch.object(block, "subset_residual", naive_residual):
        slow = outputs_and_gradients(model, images, masks, subsets)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
    everyone = outputs_and_gradients(model, images, masks, None)
    assert "mask_token" in fast[1] and all(g.abs().max() > 1e-6 for g in fast[1].values())
    assert all((a - b).abs().max() > 0.01 for a, b in zip(fast[0], everyone[0], strict=True))


@pytest.mark.parametrize("width", [192, 384])  # the official kernel needs multiples of 256
@pytest.mark.parametrize("autocast", [False, True])
def test_any_width_works_and_the_row_stays_fp32_under_autocast(lively, width, autocast):
    model = lively(ModelConfig(width, 2, width // 64, patch_size=7, img_size=28))
    images = images_of([(2, 28), (4, 14)], torch.float32)
    subsets = draw(packing=model.packing(images), depth=2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        fast = outputs_and_gradients(model, images, None, subsets)
        with mock.patch.object(block, "subset_residual", naive_residual):
            slow = outputs_and_gradients(model, images, None, subsets)
    assert all(row.dtype == torch.float32 for row in fast[0])
    tolerance = 0.05 if autocast else 1e-4
    for a, b in zip([*fast[0], *fast[1].values()], [*slow[0], *slow[1].values()], strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("branch_dtype", [None, torch.bfloat16], ids=str)
def test_the_twins_agree_to_the_bit_in_every_dtype_of_row_and_branch(dtype, branch_dtype):
    (subset, _), *_ = draw()
    x = torch.randn(sum(TWO_GROUPS.lengths), 6, generator=torch.Generator().manual_seed(0)).to(dtype)

    def branch(row, packing):
        return row.sin().to(branch_dtype or dtype)

    fast, slow = (way(x, branch, TWO_GROUPS, subset) for way in (subset_residual, naive_residual))
    assert fast.dtype == slow.dtype == dtype and torch.equal(fast, slow)


def test_the_branch_sees_the_kept_sequences_only_and_the_others_pass_unchanged():
    (subset, _), *_ = draw()
    row = torch.arange(float(sum(TWO_GROUPS.lengths)))[:, None]
    seen = []

    def branch(kept, packing):
        seen.append((kept.clone(), packing))
        return torch.ones_like(kept)

    added = (subset_residual(row, branch, TWO_GROUPS, subset) - row).squeeze(1)
    (tokens, packing), *_ = seen
    assert torch.equal(tokens.squeeze(1), subset.rows.float()) and sum(packing.lengths) == len(tokens)
    per_token = kept_sequences(subset.rows).repeat_interleave(torch.tensor(TWO_GROUPS.lengths))
    factors = torch.tensor([6 / 3] * 30 + [12 / 7] * 36)
    torch.testing.assert_close(added, per_token * factors, rtol=0, atol=1e-5)


def test_attention_takes_the_first_subset_of_a_block_and_feed_forward_the_second(lively):
    one = lively(ModelConfig(24, 1, 3, patch_size=7, img_size=28), dtype=torch.float64).blocks[0]
    x = torch.randn(sum(TWO_GROUPS.lengths), 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ((first, second),) = draw()
    between = naive_residual(x, one.attention, TWO_GROUPS, first)
    after = naive_residual(between, one.feed_forward, TWO_GROUPS, second)
    torch.testing.assert_close(one(x, TWO_GROUPS, (first, second)), after, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- what is drawn


@pytest.mark.parametrize(
    ("rate", "sequences", "kept"),
    [(0.3, 10, 7), (0.4, 10, 6), (0.4, 16, 9), (0.3, 8, 5), (0.99, 8, 1), (0.4, 1, 1), (0.9, 1, 1), (0.0, 9, 9)],
)
def test_the_official_number_of_sequences_stays_and_at_least_one(rate, sequences, kept):
    packing = Packing(((sequences, 3), (2 * sequences, 2)))
    for pair in draw(sequences, (1, 2), packing, depth=3, rate=rate):
        for subset in pair:
            both = subset.packing.groups
            assert both == ((kept, 3), (max(1, int(2 * sequences * (1 - rate))), 2))
            assert kept_sequences(subset.rows, packing).split([sequences, 2 * sequences])[0].sum() == kept
            assert len(subset.rows) == len(subset.scale) == sum(subset.packing.lengths)


def test_rows_are_whole_sequences_in_order_each_in_its_own_group():
    for pair in draw(depth=20):
        for subset in pair:
            large, small = subset.rows.split([3 * 5, 7 * 3])
            assert (subset.rows.diff() > 0).all() and large.max() < 30 <= small.min()
            assert torch.equal(large.view(3, 5) - large[::5, None], torch.arange(5).expand(3, -1))
            assert torch.equal(small.view(7, 3) - small[::3, None], torch.arange(3).expand(7, -1))
            assert not (large[::5] % 5).any() and not ((small[::3] - 30) % 3).any()


def test_on_average_a_row_becomes_what_it_would_without_stochastic_depth():
    x = torch.randn(sum(TWO_GROUPS.lengths), 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def branch(row, packing):
        return row.sin() + 1

    mean = torch.stack([subset_residual(x, branch, TWO_GROUPS, pair[0]) for pair in draw(depth=DRAWS)]).mean(0)
    scale = torch.tensor([6 / 3] * 30 + [12 / 7] * 36, dtype=torch.float64)[:, None]
    error = branch(x, TWO_GROUPS).abs() * ((scale - 1) / DRAWS).sqrt()  # of b/kept with probability kept/b, else 0
    assert ((mean - x - branch(x, TWO_GROUPS)).abs() < 4.5 * error).all()


def test_every_sequence_stays_equally_often():
    shares = torch.tensor([3 / 6] * 6 + [7 / 12] * 12)
    for kept in many_draws():
        assert (kept.float().mean(0) - shares).abs().max() < 4.5 * math.sqrt(0.25 / DRAWS)


def correlation(a, b):
    """Of columns of a with columns of b, [columns of a, columns of b]."""
    a, b = ((x.float() - x.float().mean(0)) / x.float().std(0) for x in (a, b))
    return (a.T @ b / len(a)).abs()


def test_attention_and_feed_forward_blocks_and_groups_draw_apart():
    attention, feed_forward = many_draws()
    chance = 4.5 / math.sqrt(DRAWS)
    assert correlation(attention, feed_forward).max() < chance
    assert correlation(attention[1:], attention[:-1]).max() < chance
    assert correlation(attention[:, :6], attention[:, 6:]).max() < chance


def test_a_sequence_that_runs_and_counts_nothing_leaves_row_and_gradient_alone(lively):
    """What a process does of whose sequences none is kept."""
    one = lively(ModelConfig(24, 1, 3, patch_size=7, img_size=28), dtype=torch.float64).blocks[0]
    config = DropPath(0.9, depth=1, seed=0)
    shares = [draw_kept(config, [1], Share(0, first, 1, 8)) for first in range(8)]
    scales = torch.stack([group.scale for (group,) in shares])
    assert all(group.counts == (1, 1) for (group,) in shares) and (scales == 0).sum() == 14 and scales.sum() == 16
    alone = next(kept for kept, scale in zip(shares, scales, strict=True) if not scale.any())
    packing = Packing(((1, 5),))
    x = torch.randn(5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (subsets,) = subsets_of(alone, packing)
    out = one(x, packing, subsets)
    assert torch.equal(out, x)
    out.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in one.parameters())


def test_rate_zero_is_no_stochastic_depth(lively):
    model = lively(ModelConfig(24, 2, 3, patch_size=7, img_size=28))
    images = images_of([(2, 28), (4, 14)], torch.float32)
    drawn = outputs_and_gradients(model, images, None, draw(packing=model.packing(images), depth=2, rate=0.0))
    torch.testing.assert_close(drawn, outputs_and_gradients(model, images, None, None), rtol=0, atol=1e-6)


# ---------------------------------------------------------------- activation checkpointing


@pytest.mark.parametrize("rate", [None, 0.4])
@pytest.mark.parametrize("autocast", [False, True])
def test_recomputed_blocks_give_the_same_outputs_and_gradients_to_the_bit(lively, rate, autocast):
    model = lively(ModelConfig(24, 3, 3, patch_size=7, img_size=28))
    images = images_of([(2, 28), (4, 14)], torch.float32)
    subsets = None if rate is None else draw(packing=model.packing(images), depth=3, rate=rate)
    calls = []
    for each in model.blocks:
        each.norm1.register_forward_hook(lambda *_: calls.append(1))
    found = []
    for model.checkpoint_blocks in (False, True):
        calls.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found.append(outputs_and_gradients(model, images, None, subsets))
        assert len(calls) == (6 if model.checkpoint_blocks else 3)
    (kept_rows, kept), (rows, recomputed) = found
    assert all(torch.equal(a, b) for a, b in zip(kept_rows, rows, strict=True))
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


def test_nothing_is_recomputed_where_there_is_no_gradient(lively):
    model = lively(ModelConfig(24, 1, 3, patch_size=7, img_size=28))
    model.checkpoint_blocks = True
    with torch.no_grad(), mock.patch("dinov2_zoo.models.vision_transformer.checkpoint") as checkpoint:
        model.forward_features(images_of([(2, 28)], torch.float32))
    checkpoint.assert_not_called()
