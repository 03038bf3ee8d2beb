"""Two ways to do one thing, run in turns in one go, and the ratio of their times and memories with its spread.

On a machine that others use too, only a ratio of neighbours in time means something.
"""

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Median and range of some figures."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """From single figures."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


def paired_seconds(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    rounds: int,
    *,
    warm: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> list[tuple[float, float]]:
    """Seconds of (ours, theirs) by a clock, taken in turns, after one round that is not counted (`warm`)."""
    pairs = [(_seconds(ours, clock), _seconds(theirs, clock)) for _ in range(rounds + warm)]
    return pairs[warm:]


def _seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start


def ratio(pairs: list[tuple[float, float]]) -> Spread:
    """Theirs over ours, pair by pair: above 1 ours is better."""
    return Spread.of([theirs / ours for ours, theirs in pairs])


def peak_gib(work: Callable[[], object]) -> float:
    """Most memory that `work` adds to a process of its own, GiB."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def child() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
        queue.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)

    process = context.Process(target=child)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"the measured process ended with {process.exitcode}: not enough memory?")
    return queue.get()
