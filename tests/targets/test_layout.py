"""How large a store is, and where each place lies in it."""

import pytest

from dinov2_zoo.targets.layout import SHARD, Group, Layout, in_words

IMAGENET = 1_281_167


@pytest.mark.parametrize(
    ("class_directions", "size", "words"), [(1536, 351_634_219_488, "351.6 GB"), (128, 337_203_154_400, "337.2 GB")]
)
def test_four_epochs_of_imagenet_by_a_vit_g(class_directions, size, words):
    layout = Layout(IMAGENET, 4, (Group(2, 256),), class_directions, directions=128)
    # 8 bytes are the image's number.
    assert layout.bytes_of() == IMAGENET * 4 * (2 * (class_directions + 256 * 128) + 8) == size
    assert in_words(size) == words and in_words(1_234_567) == "1.2 MB"


def test_shards_cover_every_place_once():
    layout = Layout(2 * SHARD + 5, 3, (Group(2, 4), Group(3, 1)), 7, 2)
    shards = list(layout.shards())
    assert len(shards) == 9 == len({shard.name for shard in shards})
    assert [shard.count for shard in shards[:3]] == [SHARD, SHARD, 5]
    assert sum(shard.count for shard in shards) == 3 * layout.images
    for slot in (0, SHARD - 1, SHARD, 2 * SHARD + 4):
        shard = layout.shard_of(1, slot)
        assert shard in shards and shard.epoch == 1 and shard.first <= slot < shard.first + shard.count
    assert layout.bytes_of(shards[:2]) * layout.images * 3 == layout.bytes_of() * 2 * SHARD
