"""Endless batches of whatever an index gives, in an order that follows from the seed alone."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TypeVar

import torch

from dinov2_zoo.data.augment import generator
from dinov2_zoo.errors import ConfigError, DataError
from dinov2_zoo.training.distributed import DistributedContext

T = TypeVar("T")


def batch_indices(
    length: int, *, batch_size: int, processes: DistributedContext, start: int = 0, seed: int = 0
) -> Iterator[list[tuple[int, int]]]:
    """Epoch and index of this process's items of every batch, without end, from batch `start`.

    Each epoch is a new order; an epoch's last items join the next one's first in a batch. All follows from the seed, so
    a resumed run sees what an uninterrupted one would.

    Args:
        length: Number of items.
        batch_size: Over all processes.
        processes: Share each batch.
        start: Batch to begin at.
        seed: Of the order.

    Raises:
        DataError: There are no items.
        ConfigError: The batch does not divide among the processes.
    """
    if length == 0:
        raise DataError("There are no images to train a head on: check the path.")
    if batch_size % processes.world_size:
        raise ConfigError(
            f"A batch of {batch_size} does not divide among {processes.world_size} processes: use a multiple."
        )
    orders: dict[int, list[int]] = {}
    for first in count(start * batch_size, batch_size):
        last = first + batch_size - 1
        epochs = range(first // length, last // length + 1)
        # Those of before are dropped, those already drawn are kept.
        orders = {epoch: orders.get(epoch) or _order(length, seed, epoch) for epoch in epochs}
        places = [divmod(number, length) for number in range(first + processes.rank, last + 1, processes.world_size)]
        yield [(epoch, orders[epoch][position]) for epoch, position in places]


def _order(length: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(length, generator=generator("order", seed, epoch)).tolist()


def endless_batches(
    length: int,
    read: Callable[[int, torch.Generator], T],
    *,
    batch_size: int,
    processes: DistributedContext,
    start: int = 0,
    seed: int = 0,
    workers: int = 2,
) -> Iterator[list[T]]:
    """What the items of `batch_indices` give, read in threads one batch ahead.

    Args:
        length: Number of items.
        read: Gives item `index`, with a generator that follows from (seed, epoch, index) for all its randomness.
        batch_size: Over all processes.
        processes: Share each batch.
        start: Batch to begin at.
        seed: Of order and generators.
        workers: Threads.

    Raises:
        DataError: There are no items.
        ConfigError: The batch does not divide among the processes.
    """

    def item(place: tuple[int, int]) -> T:
        epoch, index = place
        return read(index, generator("items", seed, epoch, index))

    indices = batch_indices(length, batch_size=batch_size, processes=processes, start=start, seed=seed)
    with ThreadPoolExecutor(workers) as pool:
        ahead = pool.map(item, next(indices))
        while True:
            found = list(ahead)
            ahead = pool.map(item, next(indices))
            yield found
