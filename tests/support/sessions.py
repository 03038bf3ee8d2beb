"""Tiny runs as processes of their own, under each launcher."""

import os
import subprocess
import sys
import time
from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
ROOT = SUPPORT.parent.parent
SCRIPT = str(SUPPORT / "tiny_session.py")
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
PLAIN = [sys.executable, SCRIPT]
SINGLE = [*ACCELERATE, str(ROOT / "recipes/configs/accelerate/single_gpu.yaml"), SCRIPT]
PAIR = [*ACCELERATE, str(ROOT / "recipes/configs/accelerate/cpu.yaml"), "--num_processes", "2", SCRIPT]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT]
STEPS = 30


def environment(**more):
    path = os.pathsep.join([str(ROOT), str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", **more}


def start(command, runs, *options, pace=0.0, **more):
    arguments = [f"--runs={runs}", "--name=x", f"--optim.steps={STEPS}", *options]
    return subprocess.Popen(
        [*command, *arguments],
        env=environment(PACE=str(pace), **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, timeout=120):
    """Exit code and what was printed."""
    try:
        words, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        words, _ = process.communicate()
        raise AssertionError(f"hangs: {words[-3000:]}") from None
    return process.returncode, " ".join(words.split())


def wait_for(found, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not found():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.02)
