"""How images are read: in an order that follows from the seed alone, whoever reads and wherever one begins."""

import os
import pickle
import signal

import pytest
import torch
from cutout_folder import draw_cutouts
from stand_ins import Part

from dinov2_zoo.data.sources import open_source
from dinov2_zoo.errors import ConfigError, DataError
from dinov2_zoo.evaluation.classification.linear import RandomCrop
from dinov2_zoo.evaluation.dense.pairs import ReadPairs
from dinov2_zoo.evaluation.depth.augment import DepthAugmentation
from dinov2_zoo.evaluation.depth.readers import open_depth
from dinov2_zoo.evaluation.encoders.features import CentreCrop
from dinov2_zoo.evaluation.encoders.reading import ReadImages, TrainingOrder, cut, read_ahead
from dinov2_zoo.evaluation.segmentation.augment import SegmentationAugmentation
from dinov2_zoo.evaluation.segmentation.readers import open_segmentation


def drawn(places):
    """What a batch would be made of: the number of each item and what is drawn about it."""
    return [(place.item, torch.rand((), generator=place.randomness()).item()) for place in places]


def batches(length=7, steps=6, start=0, batch_size=4, context=None, workers=0):
    order = TrainingOrder(length, batch_size, context or Part(0, 1), steps=steps, start=start)
    return list(read_ahead(drawn, order, workers))


def test_each_epoch_holds_every_item_once_in_a_new_order():
    items = [index for batch in batches(steps=7) for index, _ in batch]
    epochs = [items[first : first + 7] for first in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_an_item_is_changed_differently_in_each_epoch():
    numbers = [number for batch in batches(steps=7) for index, number in batch if index == 3]
    assert len(set(numbers)) == len(numbers) == 4


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_order_does_not_depend_on_workers_or_where_one_begins(workers):
    whole = batches()
    assert batches(workers=workers) == whole
    assert batches(start=4, workers=workers) == whole[4:]


def test_processes_share_each_batch():
    halves = [batches(context=Part(rank, 2)) for rank in range(2)]
    for whole, left, right in zip(batches(), *halves, strict=True):
        assert sorted(left + right) == sorted(whole) and len(left) == len(right) == 2


def test_small_sets_fill_large_batches():
    assert [len(batch) for batch in batches(length=3, batch_size=8, steps=2)] == [8, 8]


def test_nothing_to_read_and_uneven_shares_are_refused():
    with pytest.raises(DataError, match="no images to train a head on"):
        batches(length=0)
    with pytest.raises(ConfigError, match="A batch of 4 does not divide among 3 processes"):
        batches(context=Part(0, 3))


@pytest.mark.parametrize(("count", "workers", "sizes"), [(10, 0, [4, 4, 2]), (10, 2, [3, 3, 3, 1]), (1, 4, [1])])
def test_each_image_is_read_once_and_every_worker_has_a_part(count, workers, sizes):
    parts = cut(range(count), 4, workers)
    assert [len(part) for part in parts] == sizes
    assert [place.item for part in parts for place in part] == list(range(count))


def refuse(places):
    raise DataError("a.png is damaged: remove it.")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_workers_error_reaches_the_user_as_it_is(workers):
    with pytest.raises(DataError, match=r"^a\.png is damaged: remove it\.$"):
        list(read_ahead(refuse, cut(range(4), 1, 0), workers))


def end(places):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_told_with_the_remedy():
    with pytest.raises(DataError, match=r"A decoding process was killed, .*lower the task's workers"):
        list(read_ahead(end, cut(range(4), 1, 0), 1))


@pytest.mark.parametrize("prepare", [CentreCrop(28), RandomCrop(28)])
def test_a_source_and_its_preparation_can_be_sent_to_a_spawned_worker(prepare):
    """Workers are forked on Linux; elsewhere they are spawned, and get all they need pickled."""
    read = ReadImages(open_source("package:photos/heldout"), prepare)
    places = cut(range(2), 2, 0)[0]
    assert torch.equal(pickle.loads(pickle.dumps(read))(places).images, read(places).images)


def test_pairs_can_be_sent_to_a_spawned_worker(tmp_path):
    depth = ReadPairs(open_depth("package:motorcycle").train, DepthAugmentation((28, 28), (0.9, 1.1)))
    scenes = open_segmentation(f"composites:{draw_cutouts(tmp_path)}").train
    places = cut(range(2), 2, 0)[0]
    for read in (depth, ReadPairs(scenes, SegmentationAugmentation(56, (0.5, 2.0), 56))):
        sent, here = pickle.loads(pickle.dumps(read))(places), read(places)
        assert torch.equal(sent.images, here.images) and torch.equal(sent.targets, here.targets)
