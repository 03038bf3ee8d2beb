"""The finishing stage: which steps, which sizes, and the crops for them."""

import pytest
import torch
import torch.nn.functional as F

from dinov2_zoo.arguments import parse
from dinov2_zoo.config import CropConfig, DistillConfig, FinishConfig, LoaderConfig
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.finishing import FinishingStage, resized
from dinov2_zoo.data.loader import train_loader
from dinov2_zoo.data.sources import open_source
from dinov2_zoo.errors import ConfigError


def stage(share=0.2, sizes=None, steps=50, seed=0):
    return FinishingStage.of(FinishConfig(share, sizes), global_size=112, patch=14, steps=steps, seed=seed)


def test_it_is_the_last_share_of_the_steps():
    found = stage()
    assert found.first == 40 and found.sides == (112, 168, 224)
    assert found.drawn(39) is None and all(found.drawn(step) for step in range(40, 50))
    assert (found.cut(39, 112), found.cut(40, 112)) == (112, 224)
    assert stage(share=0.0) is None
    assert stage(share=0.01, steps=9).first == 8  # one step at least
    assert stage(share=1.0).first == 0


def test_default_sizes_are_multiples_of_the_patch():
    assert FinishConfig().sides(518, 14) == (518, 784, 1036)
    assert FinishConfig(sizes=(256, 512)).sides(224, 16) == (256, 512)


def test_sizes_follow_from_seed_and_step_and_are_drawn_apart():
    drawn = [stage(steps=4000).drawn(step) for step in range(3200, 4000)]
    assert drawn == [stage(steps=4000).drawn(step) for step in range(3200, 4000)]
    assert drawn != [stage(steps=4000, seed=1).drawn(step) for step in range(3200, 4000)]
    pairs = {pair: drawn.count(pair) for pair in set(drawn)}
    assert len(pairs) == 9 and min(pairs.values()) > 50  # of 800 / 9


def test_resizing_smooths_what_the_smaller_grid_cannot_show():
    stripes = torch.ones(2, 3, 3, 56, 56)
    stripes[..., ::2] = -1
    batch = Batch(stripes, torch.zeros(1, 3, 3, 14, 14), torch.arange(3), torch.arange(3))
    small = resized(batch, 28)
    assert small.global_crops.shape == (2, 3, 3, 28, 28) and small.local_crops is batch.local_crops
    assert small.global_crops[..., 4:-4].abs().max() < 0.1
    assert resized(batch, 56) is batch
    flat = resized(Batch(0 * stripes + 2, batch.local_crops, batch.sample_ids, batch.seeds), 84).global_crops
    torch.testing.assert_close(flat, torch.full((2, 3, 3, 84, 84), 2.0))


def test_the_loader_cuts_at_the_largest_size_from_the_stages_first_step_on():
    source, crops = open_source("package:photos/train"), CropConfig(global_size=28, local_size=14, local_count=1)
    read = {"seed": 0, "steps": 4}
    loader, late = LoaderConfig(batch_size=2, workers=0), FinishingStage(2, (28, 42, 56), 0)
    plain, staged = (list(train_loader(source, crops, loader, stage=s, **read)) for s in (None, late))
    again = list(train_loader(source, crops, loader, stage=late, start_step=3, **read))
    assert [batch.global_crops.shape[-1] for batch in staged] == [28, 28, 56, 56]
    for one, other in zip(plain, staged, strict=True):
        assert torch.equal(one.sample_ids, other.sample_ids) and torch.equal(one.local_crops, other.local_crops)
    assert torch.equal(plain[1].global_crops, staged[1].global_crops)
    assert torch.equal(again[0].global_crops, staged[3].global_crops)
    # The same cut-outs, finer.
    small = F.interpolate(staged[3].global_crops.flatten(0, 1), size=(28, 28), mode="bicubic", antialias=True)
    cosine = F.cosine_similarity(small.flatten(1), plain[3].global_crops.flatten(0, 1).flatten(1))
    assert cosine.min() > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--finish.share=1.5"], r"finish\.share is a share of the steps: use 0 to 1"),
        (["--finish.sizes=[]"], r"finish\.sizes must be sides in pixels"),
        (["--finish.share=0.2", "--objective.kind=prototypes"], r"matched patch by patch: set finish\.share to 0"),
    ],
)
def test_settings_that_cannot_work_are_sentences(options, message):
    with pytest.raises(ConfigError, match=message):
        parse(DistillConfig, options)


def test_sizes_must_be_multiples_of_the_patch():
    config, _ = parse(DistillConfig, ["--finish.share=0.2", "--finish.sizes=[224,230]"])
    with pytest.raises(ConfigError, match=r"finish\.sizes 230 is not a multiple of the patch \(14\): use 224 or 238"):
        config.check_patch(14)
