"""Mixed pictures: what they are made of, and that they follow from the image alone."""

import pytest
import torch

from dinov2_zoo.config import CropConfig, LoaderConfig, PretrainConfig
from dinov2_zoo.data.loader import Place, crops_at, train_loader
from dinov2_zoo.data.mixing import mix
from dinov2_zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD
from dinov2_zoo.data.sources import open_source
from dinov2_zoo.errors import ConfigError

CROPS = CropConfig(global_size=28, local_size=14, local_count=1, mix=1.0)


def drawn(count, share=1.0):
    """Views of zeros, mixed with views of 255; in shares of 255."""
    zeros = torch.zeros(count, 3, 20, 20, dtype=torch.uint8)
    return mix(zeros, 255 - zeros, share, 0, 1, 2) / 255


def test_half_of_the_mixed_crops_are_blended_and_half_covered_by_a_square():
    views = drawn(400)
    flat = views.flatten(1)
    blended = flat.min(1).values == flat.max(1).values
    assert 0.4 < blended.float().mean() < 0.6
    for view in views[~blended][:50]:
        assert set(view.unique().tolist()) <= {0.0, 1.0}
        rows, columns = view[0].amax(1).sum(), view[0].amax(0).sum()
        assert rows == columns and view[0].sum() == rows * columns  # one square
    # The share of the other image is uniform, whichever way.
    assert flat.mean(1).mean() == pytest.approx(0.5, abs=0.05) and flat.mean(1).std() == pytest.approx(0.29, abs=0.04)


def test_the_share_of_mixed_crops_and_none():
    untouched = (drawn(600, 0.3).flatten(1).max(1).values == 0).float().mean()
    assert untouched == pytest.approx(0.7, abs=0.06)
    assert drawn(0).shape == (0, 3, 20, 20)


def levels(crops):
    """Normalised crops back to 0..255."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((crops * std + mean) * 255).round().to(torch.uint8)


def batches(**more):
    settings = {"seed": 3, "steps": 5} | more
    loader = LoaderConfig(batch_size=settings.pop("batch_size", 6), workers=0)
    return list(train_loader(open_source("package:photos/train"), CROPS, loader, **settings))


def test_mixtures_follow_from_seed_epoch_and_image_alone():
    whole = batches()  # 30 images: one epoch
    ids = torch.cat([b.sample_ids for b in whole])
    crops = torch.cat([b.global_crops for b in whole], 1)
    small = torch.cat([b.local_crops for b in whole], 1)
    for other in (batches(batch_size=10, steps=3), batches(batch_size=6, start_step=2)):
        for batch in other:
            for i, number in enumerate(batch.sample_ids):
                (place,) = (ids == number).nonzero()[0]
                assert torch.equal(batch.global_crops[:, i], crops[:, place])
                assert torch.equal(batch.local_crops[:, i], small[:, place])


def test_the_other_image_is_the_next_of_the_epoch():
    source, plain = open_source("package:photos/train"), CropConfig(global_size=28, local_count=0)
    mixed = CropConfig(global_size=28, local_count=0, mix=1.0)
    (a,) = crops_at(source, plain, [[Place(0, 4), Place(0, 5)]], seed=3, loader=LoaderConfig(workers=0))
    (b,) = crops_at(source, mixed, [[Place(0, 4)]], seed=3, loader=LoaderConfig(workers=0))
    (last,) = crops_at(source, mixed, [[Place(0, 29)]], seed=3, loader=LoaderConfig(workers=0))
    first, second = (levels(a.global_crops[:, place]) for place in (0, 1))
    expected = mix(first, second, 1.0, 3, 0, int(b.sample_ids[0]), "global")
    assert torch.equal(levels(b.global_crops[:, 0]), expected)
    assert not torch.equal(b.global_crops[:, 0], a.global_crops[:, 0])
    assert last.global_crops.isfinite().all()  # behind the last comes the first


def test_pretraining_refuses_mixtures_and_shares_are_shares():
    with pytest.raises(ConfigError, match=r"crops\.mix shows other images"):
        PretrainConfig(crops=CropConfig(mix=0.5))
    with pytest.raises(ConfigError, match=r"crops\.mix must lie between 0 and 1"):
        CropConfig(mix=1.5)
