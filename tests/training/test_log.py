import io
import json
import os
import re
import sys
from pathlib import Path

from rich.console import Console
from terminal import Screen, run_on_terminal

from dinov2_zoo.config import LogConfig
from dinov2_zoo.data.batch import Skipped
from dinov2_zoo.training.log import RunLog

SUPPORT = Path(__file__).resolve().parent.parent / "support"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_resuming_drops_later_and_broken_lines(tmp_path):
    with RunLog(tmp_path, LogConfig(every=1, progress=False), steps=5) as log:
        for step in range(1, 6):
            log.write(step, {"loss": float(step)})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 6, "lo')
    log = RunLog(tmp_path, LogConfig(every=1, progress=False), steps=5, start=3)
    assert [line["step"] for line in lines(path)] == [1, 2, 3]
    log.write(4, {"loss": 0.5})
    assert lines(path)[-1] == {"step": 4, "loss": 0.5}


def test_a_new_run_does_not_inherit_lines(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    RunLog(tmp_path, LogConfig(), steps=5)
    assert lines(tmp_path / "metrics.jsonl") == []


EVERYTHING = {
    "loss": 0.51234,
    **{f"term{i}/with_a_long_name": 0.123456 for i in range(20)},
    "lr": 1e-4,
    "images_per_second": 12.3,
    "hours_left": 0.0512,
    "data_wait": 0.5,
}


def test_without_a_terminal_there_is_a_short_line_now_and_then():
    out = io.StringIO()
    with RunLog(None, LogConfig(every=1), steps=100, console=Console(file=out, width=30)) as log:
        for step in range(1, 101):
            log.write(step, EVERYTHING | {"hours_left": (100 - step) / 1000})
            log.write(step, {"heldout/agreement": 0.5})
    assert out.getvalue().splitlines() == [
        "step 1/100  loss 0.512  12 images/s  6 min left",
        "step 100/100  loss 0.512  12 images/s",
    ]


def test_a_terminal_gets_a_bar_with_a_few_metrics():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, force_interactive=True, width=80)
    with RunLog(None, LogConfig(every=1), steps=3, console=console) as log:
        log.tick(2)
        log.write(2, EVERYTHING)
    assert "2/3" in out.getvalue() and "loss 0.512  12 images/s" in out.getvalue()
    assert "term0" not in out.getvalue()


def test_the_bar_stays_on_one_line_of_a_real_terminal_below_all_that_is_said(tmp_path):
    """A whole run on a pseudo terminal of 80 columns: a line of the log at every step, and a long sentence between."""
    command = [sys.executable, str(SUPPORT / "tiny_session.py"), f"--runs={tmp_path}", "--name=x"]
    command += ["--optim.steps=60", "--log.trackers=[tensorboard]"]
    path = os.pathsep.join([str(SUPPORT.parent.parent), str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "PACE": "0.03", "BREAK_TRACKER": "1"}
    text, code = run_on_terminal(command, 80, environment)
    assert code == 0, text
    assert len(lines(tmp_path / "x/metrics.jsonl")) == 60
    screen, seen = Screen(80), set()
    for part in re.split(r"(?=\r)", text):
        screen.feed(part)
        bars = [row for row in screen.rows if "Training ━" in row or "/60" in row]
        assert len(bars) <= 1, "a bar was left behind, or broken in two"
        seen |= set(bars)
    assert len(seen) > 10  # it was drawn again and again
    # The sentences wrap, the bar never does.
    assert len(screen.wrapped) >= 2 and not any("━" in row or "/60" in row for row in screen.wrapped)
    (bar,) = bars
    assert re.fullmatch(r"Training ━+ 60/60 loss 0\.\d{3}  [\d,.]+ images/s *", bar)
    assert screen.rows.index(bar) > max(i for i, row in enumerate(screen.rows) if "tracker" in row)


def test_other_processes_write_no_numbers_but_report_skipped_images(tmp_path):
    tracked = []
    log = RunLog(tmp_path, LogConfig(), steps=3, main=False, track=lambda values, step: tracked.append(step))
    log.write(1, {"loss": 1.0})
    log.skip([Skipped(sample_id=7, name="a.jpg", reason="truncated")])
    assert not (tmp_path / "metrics.jsonl").exists() and not tracked
    assert lines(tmp_path / "skipped.jsonl") == [{"id": 7, "name": "a.jpg", "reason": "truncated"}]
    assert log.skipped == 1


def test_lines_are_due_every_so_often_and_at_the_end():
    log = RunLog(None, LogConfig(every=10, progress=False), steps=25)
    assert [s for s in range(1, 26) if log.due(s)] == [10, 20, 25]
