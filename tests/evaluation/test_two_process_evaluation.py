"""Two real processes under accelerate measure what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from evaluation_runs import evaluate

ROOT = Path(__file__).resolve().parent.parent.parent


def test_two_processes_find_what_one_finds(place):
    tasks = ("knn", "linear", "segmentation:linear", "in_context", "correspondence", "retrieval", "video")
    arguments = ("--model", f"one={place}/model0", "--tasks", ",".join(tasks))
    code, _, err = evaluate(place, *arguments, "--out", "alone")
    assert code == 0, err
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    command += ["--config_file", str(ROOT / "recipes/configs/accelerate/cpu.yaml"), str(ROOT / "recipes/evaluate.py")]
    command += ["--config", str(place / "quick.yaml"), *arguments, "--out", "pair"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=os.environ.copy(), timeout=240)
    for task in tasks:
        alone, pair = (
            json.loads(file.read_text())["metrics"] if file.is_file() else done.stderr[-3000:]
            for file in (place / out / "one" / f"{task.replace(':', '-')}.json" for out in ("alone", "pair"))
        )
        assert pair == pytest.approx(alone, abs=1e-4), task
