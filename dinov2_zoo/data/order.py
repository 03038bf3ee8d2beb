"""The order in which an epoch shows the images: a permutation that is computed place by place and never stored.

A Feistel network over pairs (row, column) of a grid just larger than the epoch; a place that falls outside the epoch is
sent through again until it falls inside ("cycle walking", Black and Rogaway 2002). `randperm` would hold 8 bytes for
every image in every process: 1.1 GB at the 142 million images of the paper.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

from dinov2_zoo.data.augment import seed_of

ROUNDS = 8
"""Halves that are moved (chosen here: 4 are enough in theory for large epochs; 8 also make 10 images look shuffled)."""
_MASK = (1 << 64) - 1


class EpochOrder:
    """A permutation of 0 to n - 1 that follows from its key; any place of it is found in constant time and memory.

    Args:
        length: Number of images, n.
        key: All that the order depends on.
    """

    def __init__(self, length: int, *key: int | str) -> None:
        self.length = length
        self._columns = max(1, math.isqrt(length))
        self._rows = -(-length // self._columns)
        self._keys = [seed_of(*key, turn) for turn in range(ROUNDS)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, slot: int) -> int:
        """The image at a place, 0 to n - 1."""
        if not 0 <= slot < self.length:
            raise IndexError(slot)
        while True:
            slot = self._there(slot)
            if slot < self.length:
                return slot

    def __iter__(self) -> Iterator[int]:
        return (self[slot] for slot in range(self.length))

    def slot_of(self, image: int) -> int:
        """The place of an image, both 0 to n - 1."""
        while True:
            image = self._back(image)
            if image < self.length:
                return image

    def _there(self, place: int) -> int:
        row, column = divmod(place, self._columns)
        for turn in range(0, ROUNDS, 2):
            row = (row + _mixed(column, self._keys[turn])) % self._rows
            column = (column + _mixed(row, self._keys[turn + 1])) % self._columns
        return row * self._columns + column

    def _back(self, place: int) -> int:
        row, column = divmod(place, self._columns)
        for turn in range(ROUNDS - 2, -1, -2):
            column = (column - _mixed(row, self._keys[turn + 1])) % self._columns
            row = (row - _mixed(column, self._keys[turn])) % self._rows
        return row * self._columns + column


def _mixed(value: int, key: int) -> int:
    """64 bits that depend on all bits of both numbers (the finaliser of SplitMix64, Steele et al. 2014)."""
    value = (value + key) & _MASK
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK
    return value ^ value >> 31


@lru_cache(maxsize=8)  # a batch spans two epochs at most; stored targets have a few that come again
def epoch_order(length: int, seed: int, epoch: int) -> EpochOrder:
    """The order of an epoch's images."""
    return EpochOrder(length, "order", seed, epoch)
