"""What `dinov2-zoo status` says of a run, from its folder alone."""

import json
import subprocess
import sys

import pytest

from dinov2_zoo.errors import ConfigError
from dinov2_zoo.reports.status import status


@pytest.fixture
def run(tmp_path):
    """A run at step 40 of 200, with one checkpoint."""
    folder = tmp_path / "x"
    saved = folder / "checkpoints/step-30"
    saved.mkdir(parents=True)
    (saved / "manifest.json").write_text("{}")
    (saved / "__0_0.distcp").write_bytes(bytes(3 << 20))
    (folder / "config.json").write_text(json.dumps({"config": {"optim": {"steps": 200}}}))
    lines = [
        {"step": s, "loss": 4 - s / 20, "images_per_second": 50.0, "data_wait": 0.25, "hours_left": 0.5, "skipped": 2}
        for s in range(10, 41, 10)
    ]
    lines.insert(2, {"step": 20, "heldout/patch_cosine": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 50, "lo')
    return folder


def test_a_run_that_was_stopped(run):
    rows = status(run)
    assert rows["state"].startswith("not running") and "time left" not in rows
    assert rows["step"] == "40 of 200 (20%)" and rows["loss"] == "3.5 at first, 2 lately"
    assert rows["speed"] == "50 images/s, 25% of it waiting for data"
    assert rows["heldout, patch_cosine"] == "0.5 at step 20" and rows["skipped images"] == "2 (skipped.jsonl)"
    assert rows["checkpoints"].startswith("1, the newest step-30, 0:00:0") and rows["checkpoints"].endswith("3 MiB")


def test_a_run_in_progress_is_told_by_its_lock_which_dies_with_it(run):
    code = "import sys, pathlib; from dinov2_zoo.training.run_folder import hold_run_folder\n"
    code += "with hold_run_folder(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code, run], stdin=-1, stdout=-1, text=True)
    assert process.stdout.readline() == "held\n"
    rows = status(run)
    assert f"training: process {process.pid} on " in rows["state"] and rows["time left"] == "0:30:00"
    process.kill()
    process.communicate()
    assert status(run)["state"].startswith("not running")


def test_a_finished_run_and_one_with_bad_steps(run):
    (run / "measured.json").write_text("{}")
    (run / "bad_batches").mkdir()
    (run / "bad_batches/step-3.json").write_text("{}")
    assert status(run)["state"] == "finished" and status(run)["bad steps"] == "1 (bad_batches/)"


def test_the_command_prints_it_and_a_folder_without_a_run_is_an_error(run, tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        status(tmp_path)
    code = "import sys; from dinov2_zoo.cli import main; sys.argv[0] = 'dinov2-zoo'; main()"
    done = subprocess.run([sys.executable, "-c", code, "status", run], capture_output=True, text=True)
    assert done.returncode == 0 and "40 of 200 (20%)" in done.stdout, done.stderr
    done = subprocess.run([sys.executable, "-c", code, "status", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ")
