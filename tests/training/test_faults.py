"""Runs that are stopped, killed, starved and lied to: each outcome is the one README promises. Real processes."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time

import pytest
import torch
from safetensors.torch import load_file
from sessions import (
    PAIR,
    PLAIN,
    SINGLE,
    STEPS,
    TORCHRUN,
    finish,
    start,
    wait_for,
)


def lines(runs):
    path = runs / "x/metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def weights(runs):
    return load_file(runs / "x/weights.safetensors")


def assert_same(runs, expected, **tolerance):
    found = weights(runs)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **(tolerance or {"rtol": 0, "atol": 0}))
    assert [line["step"] for line in lines(runs)] == list(range(1, STEPS + 1))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    runs = tmp_path_factory.mktemp("whole")
    code, words = finish(start(PLAIN, runs))
    assert code == 0, words
    return weights(runs)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)]
)
def test_a_run_told_to_stop_saves_itself_within_a_step_and_goes_on(undisturbed, tmp_path, number):
    process = start(PLAIN, tmp_path, pace=0.1)
    wait_for(lambda: len(lines(tmp_path)) >= 4, process)
    told_at = len(lines(tmp_path))
    process.send_signal(number)
    code, words = finish(process)
    assert code == 75, words
    assert f"stopped: {signal.Signals(number).name} received; saved at step" in words
    stopped_at = len(lines(tmp_path))
    assert stopped_at <= told_at + 2 and (tmp_path / f"x/checkpoints/step-{stopped_at}/manifest.json").exists()
    code, words = finish(start(PLAIN, tmp_path, "--resume"))
    assert code == 0 and f"step {stopped_at} to {STEPS}, from" in words, words
    assert_same(tmp_path, undisturbed)


def test_a_run_whose_launcher_has_gone_saves_itself(undisturbed, tmp_path):
    process = start(SINGLE, tmp_path, pace=0.1)
    wait_for(lambda: len(lines(tmp_path)) >= 4, process)
    process.send_signal(signal.SIGTERM)  # accelerate dies of it and tells nobody
    code, words = finish(process)  # returns when the child has closed its output
    assert code == -signal.SIGTERM and "stopped: accelerate launch has gone; saved at step" in words
    code, words = finish(start(SINGLE, tmp_path, "--resume", "auto"))
    assert code == 0, words
    assert_same(tmp_path, undisturbed)


def test_two_processes_under_torchrun_stop_together_and_go_on_as_one_under_python(undisturbed, tmp_path):
    process = start(TORCHRUN, tmp_path, pace=0.1)
    wait_for(lambda: len(lines(tmp_path)) >= 4, process)
    process.send_signal(signal.SIGTERM)
    code, words = finish(process)
    assert code != 0 and "saved at step" in words, words
    code, words = finish(start(PLAIN, tmp_path, "--resume"))
    assert code == 0, words
    assert_same(tmp_path, undisturbed, rtol=0, atol=1e-4)  # fp32: AdamW divides by small second moments


def test_one_process_goes_on_as_two(undisturbed, tmp_path):
    process = start(PLAIN, tmp_path, pace=0.1)
    wait_for(lambda: len(lines(tmp_path)) >= 4, process)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 75
    finish(start(PAIR, tmp_path, "--resume"))  # judged by what it leaves: gloo may abort a finished process
    assert_same(tmp_path, undisturbed, rtol=0, atol=1e-4)


def test_killed_at_any_instant_a_run_goes_on_bit_for_bit(undisturbed, tmp_path):
    """Three kills; benchmarks/faults.py has fifty, of the real recipe."""
    instants = random.Random(0)
    for _ in range(3):
        reached = len(lines(tmp_path))
        process = start(PLAIN, tmp_path, "--resume", pace=0.03)
        wait_for(lambda: len(lines(tmp_path)) > reached // 3 * 3, process)  # noqa: B023
        time.sleep(instants.uniform(0, 0.2))
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL
    code, words = finish(start(PLAIN, tmp_path, "--resume"))
    assert code == 0, words
    assert_same(tmp_path, undisturbed)


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(undisturbed, tmp_path):
    assert finish(start(PLAIN, tmp_path))[0] == 0
    for step, name in ((30, "__0_0.distcp"), (27, ".metadata")):
        path = tmp_path / f"x/checkpoints/step-{step}/{name}"
        path.write_bytes(path.read_bytes()[:-10])
    (tmp_path / "x/weights.safetensors").unlink()
    code, words = finish(start(PLAIN, tmp_path, "--resume"))
    assert code == 0 and words.count("Skipped:") == 2 and "step 24 to 30" in words, words
    assert_same(tmp_path, undisturbed)
    for path in (tmp_path / "x/checkpoints").rglob("*.distcp"):
        path.write_bytes(b"")
    code, words = finish(start(PLAIN, tmp_path, "--resume"))
    assert code == 2 and "No whole checkpoint is left" in words


def test_only_one_process_may_write_a_run(tmp_path):
    first = start(PLAIN, tmp_path, pace=3)  # outlives the other's start on a busy machine
    wait_for(lambda: len(lines(tmp_path)) >= 1, first)
    code, words = finish(start(PLAIN, tmp_path, "--resume"))
    assert code == 2 and f"is being written by process {first.pid} on" in words
    first.kill()
    finish(first)


def test_when_one_of_two_processes_dies_the_other_leaves_with_a_reason(tmp_path):
    """Without a launcher that would end it: as under a bare srun."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    pair = [start(PLAIN, tmp_path, pace=0.1, RANK=str(r), LOCAL_RANK=str(r), **world) for r in range(2)]
    wait_for(lambda: len(lines(tmp_path)) >= 4, pair[0])
    pair[1].kill()
    finish(pair[1])
    code, words = finish(pair[0], timeout=60)
    assert code == 2 and "error: Another process of this run has died" in words and "--resume" in words, words


def test_srun_starts_one_process_per_task(undisturbed, tmp_path):
    """A stand-in for srun: it tells each task what the real one does."""
    step = {"SLURM_JOB_ID": "77", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    pair = [
        start(PLAIN, tmp_path, SLURM_STEP_NODELIST="localhost", SLURM_PROCID=str(r), SLURM_LOCALID=str(r), **step)
        for r in range(2)
    ]
    for process in pair:
        finish(process)
    assert_same(tmp_path, undisturbed, rtol=0, atol=1e-4)


@contextlib.contextmanager
def small_disk(folder, size):
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("background", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_a_full_disk_stops_the_run_with_the_last_checkpoint_whole(undisturbed, tmp_path, background):
    with small_disk(tmp_path, "200k"):
        more = (f"--checkpoint.background={background}", "--checkpoint.keep=100")
        code, words = finish(start(PLAIN, tmp_path, *more, pace=0.05))
        assert code == 2 and "could not be written" in words and "is whole, and --resume goes on from it" in words
        written = len(list((tmp_path / "x/checkpoints").iterdir()))
        assert 1 <= written < STEPS // 3
        assert subprocess.run(["mount", "-o", "remount,size=20m", tmp_path]).returncode == 0
        code, words = finish(start(PLAIN, tmp_path, "--resume", *more))
        assert code == 0 and "Skipped" not in words, words
        assert_same(tmp_path, undisturbed)


def test_a_disk_that_is_full_from_the_start_is_told_before_anything_else(tmp_path):
    with small_disk(tmp_path, "64k"):
        with contextlib.suppress(OSError), (tmp_path / "rest").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        code, words = finish(start(PLAIN, tmp_path))
        assert code == 2 and not (tmp_path / "x").exists()
        assert words.startswith(f"error: {tmp_path}/x cannot be written (No space left on device)"), words


def test_a_tracker_that_cannot_be_reached_does_not_stop_a_run(undisturbed, tmp_path):
    code, words = finish(start(PLAIN, tmp_path, "--log.trackers=[tensorboard]", BREAK_TRACKER="1"))
    assert code == 0 and words.count("The tracker failed (ConnectionError: no route to tracker)") == 1, words
    assert_same(tmp_path, undisturbed)


def test_another_configuration_is_refused_or_recorded(tmp_path):
    assert finish(start(PLAIN, tmp_path))[0] == 0
    changed = ("--optim.clip_norm=1.5", f"--optim.steps={STEPS + 2}")
    code, words = finish(start(PLAIN, tmp_path, "--resume", *changed))
    assert code == 2 and "optim.clip_norm: 3.0 -> 1.5; optim.steps: 30 -> 32" in words
    code, words = finish(start(PLAIN, tmp_path, "--resume", *changed, "--checkpoint.allow_changes=true"))
    assert code == 0 and f"step {STEPS} to {STEPS + 2}" in words, words
    record = json.loads((tmp_path / "x/config.json").read_text())
    assert record["config"]["optim"]["steps"] == STEPS + 2
    assert record["changes"][0]["settings"] == ["optim.clip_norm: 3.0 -> 1.5", "optim.steps: 30 -> 32"]
