"""Batches made ahead of the consumer by worker processes: torch's DataLoader, with its workers' errors said plainly."""

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from dinov2_zoo.errors import DataError, ZooError

T = TypeVar("T")


class Places(Protocol):
    """Which items each batch is made of, in turn: a batch sampler."""

    def __len__(self) -> int:
        """Number of batches."""
        ...

    def __iter__(self) -> Iterator[list[Any]]:
        """The items of each."""
        ...


class MadeAhead(Generic[T]):
    """Batches in turn, the same whatever the number of workers; may be gone through again.

    Args:
        make: Makes the batch of a list of items. Picklable, for workers that are spawned instead of forked.
        places: Items of each batch.
        workers: Processes; 0: all is made here, when it is asked for.
        prefetch: Batches that each process makes ahead.
        lower: Settings that take less memory when they are lowered, for the error.

    Raises:
        DataError: While iterating: a worker was killed.
        ZooError: While iterating: whatever `make` raises for the user.
    """

    def __init__(
        self, make: Callable[[list[Any]], T], places: Places, workers: int, *, lower: str, prefetch: int = 2
    ) -> None:
        self._lower = lower
        self._batches: DataLoader[T | ZooError] = DataLoader(
            _Batches(make),
            batch_sampler=places,  # pyright: ignore[reportArgumentType] (any sized iterable of lists does)
            collate_fn=_as_made,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_interrupts_to_parent,  # torch itself gives each worker one thread
            generator=torch.Generator(),  # else the loader would draw from, and so move, torch's global generator
        )

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[T]:
        made = iter(self._batches)
        while True:
            try:
                batch = next(made, None)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise DataError(
                    f"A decoding process was killed, most often for lack of memory: lower {self._lower}, and in a "
                    "container give /dev/shm more room."
                ) from error
            if batch is None:
                return
            if isinstance(batch, ZooError):
                raise batch
            yield batch


class _Batches(Dataset[T | ZooError], Generic[T]):
    """Whole batches. A user's error is returned: raised in a worker, torch would bury it in a traceback."""

    def __init__(self, make: Callable[[list[Any]], T]) -> None:
        self._make = make

    def __getitems__(self, places: list[Any]) -> T | ZooError:
        try:
            return self._make(places)
        except ZooError as error:
            return error


def usable_cores() -> int:
    """Cores this process may use: fewer than the machine has, in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _as_made(batch: Any) -> Any:
    """Collating is done already; a named function, since workers that are spawned need to import it."""
    return batch


def _leave_interrupts_to_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; only the parent should act on it, and it ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
