"""Endless batches of whatever an index gives, in an order that follows from the seed alone."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from dinov2_zoo.data.augment import generator
from dinov2_zoo.errors import ConfigError, DataError

T = TypeVar("T")


def endless_batches(
    length: int,
    read: Callable[[int, torch.Generator], T],
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 2,
) -> Iterator[list[T]]:
    """This process's part of every batch, without end, from batch `start`.

    Each epoch is a new order; an epoch's last items join the next one's first in a batch. Order and the generators
    given to `read` follow from (seed, epoch, index), so a resumed run sees what an uninterrupted one would, whatever
    the workers.

    Args:
        length: Number of items.
        read: Gives item `index`, with a generator for all its randomness.
        batch_size: Over all processes.
        seed: Of order and generators.
        start: Batch to begin at.
        rank: This process.
        world_size: Processes.
        workers: Threads that read, one batch ahead.

    Raises:
        DataError: There are no items.
        ConfigError: The batch does not divide among the processes.
    """
    if length == 0:
        raise DataError("There are no images to train a head on: check the path.")
    if batch_size % world_size:
        raise ConfigError(f"A batch of {batch_size} does not divide among {world_size} processes: use a multiple.")
    orders: dict[int, list[int]] = {}

    def item(number: int) -> T:
        epoch, position = divmod(number, length)
        index = orders[epoch][position]
        return read(index, generator("items", seed, epoch, index))

    def numbers(batch: int) -> range:
        first = batch * batch_size
        for epoch in range(first // length, (first + batch_size - 1) // length + 1):
            if epoch not in orders:
                orders[epoch] = torch.randperm(length, generator=generator("order", seed, epoch)).tolist()
        return range(first + rank, first + batch_size, world_size)

    with ThreadPoolExecutor(workers) as pool:
        ahead = pool.map(item, numbers(start))
        batch = start
        while True:
            found = list(ahead)
            batch += 1
            for epoch in [epoch for epoch in orders if epoch < batch * batch_size // length]:
                del orders[epoch]
            ahead = pool.map(item, numbers(batch))
            yield found
