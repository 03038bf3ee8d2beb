"""The order of an epoch: a permutation that looks drawn, found at any place without going through those before it."""

import pickle
import tracemalloc
from collections import Counter
from itertools import pairwise

import pytest

from dinov2_zoo.data.order import EpochOrder, epoch_order

PAPER = 142_000_000


@pytest.mark.parametrize("length", [1, 2, 3, 7, 10, 97, 1000, 1024, 5003])
def test_every_image_once_and_back(length):
    order = EpochOrder(length, "test", length)
    images = list(order)
    assert sorted(images) == list(range(length)) and len(order) == length
    assert [order.slot_of(image) for image in images] == list(range(length))
    with pytest.raises(IndexError):
        order[length]
    with pytest.raises(IndexError):
        order[-1]


def test_it_depends_on_all_of_its_key_and_on_nothing_else():
    orders = [list(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert list(pickle.loads(pickle.dumps(EpochOrder(50, "order", 1, 1)))) == orders[3]


def test_ten_images_stand_in_all_places_beside_all_others_about_as_often():
    tries = 3000
    places, neighbours, odd = Counter(), Counter(), 0
    for key in range(tries):
        order = list(EpochOrder(10, "even", key))
        places.update(enumerate(order))
        neighbours.update(pairwise(order))
        odd += sum(a > b for i, b in enumerate(order) for a in order[:i]) % 2

    def chi_square(counts, expected):
        return sum((count - expected) ** 2 / expected for count in counts.values())

    assert len(places) == 100 and chi_square(places, tries / 10) < 140  # 81 degrees of freedom: 1 in 10,000
    assert len(neighbours) == 90 and chi_square(neighbours, tries / 10) < 152  # 89 or so
    assert abs(odd / tries - 0.5) < 0.04


def test_neighbours_in_a_large_order_are_unrelated():
    order = EpochOrder(PAPER, "large")
    images = [order[slot] for slot in range(2000)]
    steps = [b - a for a, b in pairwise(images)]
    assert len(set(images)) == 2000 and len(set(steps)) == 1999
    assert 0.45 < sum(step > 0 for step in steps) / 1999 < 0.55
    assert 0.45 < sum(images) / 2000 / PAPER < 0.55 and min(images) < PAPER / 200 < PAPER - max(images) + PAPER / 100


def test_any_place_of_142_million_takes_a_few_hundred_bytes():
    tracemalloc.start()
    order = EpochOrder(PAPER, "memory")
    found = [order[slot] for slot in (0, PAPER // 2, PAPER - 1)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(found)) == 3 and [order.slot_of(image) for image in found] == [0, PAPER // 2, PAPER - 1]
    assert peak < 20_000
