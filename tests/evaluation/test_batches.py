"""Batches without end: an order that follows from the seed alone, whoever reads and wherever one begins."""

from itertools import islice

import pytest
import torch
from stand_ins import Part

from dinov2_zoo.errors import ConfigError, DataError
from dinov2_zoo.evaluation.batches import endless_batches


def batches(length=7, count=6, **options):
    def read(index, randomness):
        return index, torch.rand((), generator=randomness).item()

    options = {"batch_size": 4, "processes": Part(0, 1), **options}
    return list(islice(endless_batches(length, read, **options), count))


def test_each_epoch_holds_every_item_once_in_a_new_order():
    items = [index for batch in batches(count=7) for index, _ in batch]
    epochs = [items[first : first + 7] for first in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_an_item_is_changed_differently_in_each_epoch():
    numbers = [number for batch in batches(count=7) for index, number in batch if index == 3]
    assert len(set(numbers)) == len(numbers) == 4


def test_the_order_does_not_depend_on_workers_or_where_one_begins():
    whole = batches()
    assert batches(workers=5) == whole
    assert batches(start=4, count=2) == whole[4:]
    assert batches(seed=1) != whole


def test_processes_share_each_batch():
    halves = [batches(processes=Part(rank, 2)) for rank in range(2)]
    for whole, left, right in zip(batches(), *halves, strict=True):
        assert sorted(left + right) == sorted(whole) and len(left) == len(right) == 2


def test_small_sets_fill_large_batches():
    assert [len(batch) for batch in batches(length=3, batch_size=8, count=2)] == [8, 8]


def test_nothing_to_read_and_uneven_shares_are_refused():
    with pytest.raises(DataError, match="no images to train a head on"):
        batches(length=0)
    with pytest.raises(ConfigError, match="A batch of 4 does not divide among 3 processes"):
        batches(processes=Part(0, 3))
