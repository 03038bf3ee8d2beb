"""Prepare the next batch in threads while the model works on this one."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(
    items: Iterable[T], prepare: Callable[[T], R], *, batch_size: int, workers: int
) -> Iterator[list[tuple[T, R]]]:
    """Batches of items and what `prepare` makes of them, in order, one batch ahead of the consumer.

    Args:
        items: Taken in the caller's thread, a batch at a time, and only when needed: they may be endless.
        prepare: Called in threads. What it raises is raised here.
        batch_size: Items in each batch but the last.
        workers: Threads.
    """
    rest = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        batch = list(islice(rest, batch_size))
        made = pool.map(prepare, batch)
        try:
            while batch:
                following = list(islice(rest, batch_size))
                ahead = pool.map(prepare, following)
                yield list(zip(batch, made, strict=True))
                batch, made = following, ahead
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
