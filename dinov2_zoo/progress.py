"""Progress for people: one bar on a terminal, one plain line elsewhere, and times in words."""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

T = TypeVar("T")

AFTER = 5.0
"""Seconds that pass before anything is shown: shorter work needs no bar."""

# Two bars on one terminal would overwrite each other: whoever holds this shows one, the others stay silent.
_one_bar = threading.Lock()


def duration(seconds: float) -> str:
    """A time in words, two units at most: "40 s", "3 min", "2 h 5 min", "3 days 4 h"."""
    whole = round(seconds)
    minutes, hours = round(whole / 60), round(whole / 3600)
    if whole < 60:
        return f"{whole} s"
    if minutes < 60:
        return f"{minutes} min"
    if hours < 24:
        return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
    days = f"{hours // 24} day{'s' if hours >= 48 else ''}"
    return f"{days} {hours % 24} h" if hours % 24 else days


class TimeLeft(ProgressColumn):
    """The time left as "3 min left"; empty until it can be told."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """The column's text."""
        left = task.time_remaining
        return Text("" if left is None or task.finished else f"{duration(left)} left")


def progress_bar(console: Console, *, total: int | None, transient: bool = False) -> Progress:
    """A bar that takes one line of the terminal, whatever its width; its task needs a field `numbers`.

    Args:
        console: A terminal.
        total: Steps to do; None: unknown, which shows a spinner instead of a count.
        transient: Whether the bar disappears at the end.
    """

    def column() -> Column:
        return Column(no_wrap=True, overflow="ellipsis")

    description = TextColumn("{task.description}", table_column=column())
    if total is None:
        return Progress(SpinnerColumn(), description, console=console, transient=transient)
    return Progress(
        description,
        BarColumn(bar_width=None),  # takes what the words leave
        MofNCompleteColumn(table_column=column()),
        TextColumn("{task.fields[numbers]}", table_column=column()),
        TimeLeft(table_column=column()),
        console=console,
        transient=transient,
        expand=True,
        speed_estimate_period=600,  # slow steps would have no speed in rich's half a minute
    )


@contextmanager
def the_only_bar() -> Generator[bool, None, None]:
    """Within the block no other bar is begun; gives False where there is one already."""
    mine = _one_bar.acquire(blocking=False)
    try:
        yield mine
    finally:
        if mine:
            _one_bar.release()


@contextmanager
def progress(
    description: str, total: int | None = None, *, console: Console | None = None, after: float = AFTER
) -> Generator[Callable[[], None], None, None]:
    """Show that something is being done, once it has taken a while: a bar on a terminal, else one plain line.

    Where there is a bar already (the training's), nothing is shown.

    Args:
        description: What is being done, such as "Fitting the student's first weights".
        total: Steps to do; None: unknown.
        console: Where people look; default stderr.
        after: Seconds that pass before anything is shown.

    Yields:
        A function to call after each step.
    """
    console = console or Console(stderr=True)
    bar = progress_bar(console, total=total, transient=True)
    task = bar.add_task(description, total=total, numbers="")
    lock = threading.Lock()  # the timer may fire while the block ends
    ended = False

    def show() -> None:
        with lock:
            if ended:
                return
            if console.is_interactive:
                bar.start()
            else:
                so_far = "" if total is None else f", {bar.tasks[0].completed:g} of {total} so far"
                console.print(f"{description}{so_far} ...", markup=False, highlight=False, soft_wrap=True)

    timer = threading.Timer(after, show)
    timer.daemon = True
    with the_only_bar() as mine:
        if mine:
            timer.start()
        try:
            yield lambda: bar.advance(task)
        finally:
            timer.cancel()
            with lock:
                ended = True
                if bar.live.is_started:
                    bar.stop()


def track(
    iterable: Iterable[T],
    total: int | None,
    description: str,
    console: Console | None = None,
    *,
    after: float = AFTER,
) -> Iterator[T]:
    """The items of an iterable, with progress as of `progress`; the time that the caller takes for them counts.

    Args:
        iterable: What to go through.
        total: How many items it has; None: unknown.
        description: What is being done.
        console: Where people look; default stderr.
        after: Seconds that pass before anything is shown.
    """
    with progress(description, total, console=console, after=after) as advance:
        for item in iterable:
            yield item
            advance()
