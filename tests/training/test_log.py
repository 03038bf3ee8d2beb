import io
import json

from rich.console import Console

from dinov2_zoo.config import LogConfig
from dinov2_zoo.data.batch import Skipped
from dinov2_zoo.training.log import RunLog


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


def test_without_a_terminal_there_is_a_plain_line_now_and_then():
    out = io.StringIO()
    with RunLog(None, LogConfig(every=1), steps=100, console=Console(file=out)) as log:
        for step in range(1, 101):
            log.write(step, {"loss": 0.25})
    assert out.getvalue() == "step 1/100  loss 0.25\nstep 100/100  loss 0.25\n"


def test_a_terminal_gets_a_bar_with_the_numbers():
    out = io.StringIO()
    with RunLog(None, LogConfig(every=1), steps=3, console=Console(file=out, force_terminal=True, width=120)) as log:
        log.tick(2, 0.1)
        log.write(2, {"loss": 0.25})
    assert "2/3" in out.getvalue() and "loss 0.25" in out.getvalue()


def test_other_processes_write_no_numbers_but_report_skipped_images(tmp_path):
    tracked = []
    log = RunLog(tmp_path, LogConfig(), steps=3, main=False, track=lambda values, step: tracked.append(step))
    log.write(1, {"loss": 1.0})
    log.skip([Skipped(sample_id=7, name="a.jpg", reason="truncated")])
    assert not (tmp_path / "metrics.jsonl").exists() and not tracked
    assert lines(tmp_path / "skipped.jsonl") == [{"id": 7, "name": "a.jpg", "reason": "truncated"}]
    assert log.skipped == 1


def test_a_step_takes_its_median_time():
    log = RunLog(None, LogConfig(progress=False), steps=9)
    for seconds in (0.1, 0.1, 9.0):
        log.tick(1, seconds)
    assert log.step_seconds() == 0.1


def test_lines_are_due_every_so_often_and_at_the_end():
    log = RunLog(None, LogConfig(every=10, progress=False), steps=25)
    assert [s for s in range(1, 26) if log.due(s)] == [10, 20, 25]
