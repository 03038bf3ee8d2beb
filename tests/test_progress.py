"""Progress is shown when work takes a while: one line of a terminal whatever its width, one plain line elsewhere."""

import io
import time

import pytest
from rich.console import Console

from dinov2_zoo.progress import duration, progress, progress_bar, the_only_bar, track


def terminal(width=80):
    return Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=width)


def written(console):
    return console.file.getvalue()


def test_times_are_words():
    told = {0: "0 s", 40: "40 s", 59.7: "1 min", 170: "3 min", 3599: "1 h", 7500: "2 h 5 min", 86399: "1 day"}
    told |= {90_000: "1 day 1 h", 2 * 86_400: "2 days", 25 * 86_400 + 7 * 3600: "25 days 7 h"}
    assert {seconds: duration(seconds) for seconds in told} == told


@pytest.mark.parametrize("total", [3, None])
def test_work_that_takes_long_gets_a_bar_that_disappears(total):
    console, items = terminal(), []
    for item in track("abc", total, "Fitting the student", console, after=0.0):
        items.append(item)
        time.sleep(0.1)
    assert items == ["a", "b", "c"] and "Fitting the student" in written(console)
    assert ("2/3" in written(console)) == (total == 3)
    assert written(console).endswith("\x1b[1A\x1b[2K")  # up, and the line is erased


def test_without_a_terminal_it_gets_one_line():
    console = Console(file=io.StringIO(), width=30)
    for _ in track(range(3), 3, "Fitting the student's first weights", console, after=0.05):
        time.sleep(0.1)
    assert written(console) == "Fitting the student's first weights, 0 of 3 so far ...\n"


@pytest.mark.parametrize("console", [terminal(), Console(file=io.StringIO())])
def test_work_that_is_done_at_once_says_nothing(console):
    assert list(track(range(3), 3, "Fitting", console)) == [0, 1, 2]
    with pytest.raises(ZeroDivisionError), progress("Fitting", 3, console=console) as advance:
        advance()
        1 / 0  # noqa: B018
    assert written(console) == ""


def test_beside_another_bar_nothing_is_shown():
    console = terminal()
    with the_only_bar() as mine:
        assert mine
        for _ in track(range(2), 2, "Measuring", console, after=0.0):
            time.sleep(0.05)
    assert written(console) == ""
    with the_only_bar() as mine:
        assert mine


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_a_bar_takes_one_line_of_any_terminal(width):
    bar = progress_bar(terminal(width), total=625_000)
    task = bar.add_task("Training", total=625_000, numbers="loss 12.34  123,456 images/s")
    bar.update(task, completed=600_000)
    lines = bar.console.render_lines(bar.get_renderable())
    assert len(lines) == 1 and sum(segment.cell_length for segment in lines[0]) <= width
