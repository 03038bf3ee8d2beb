"""The power behind a card's energy is an assumption that says what it is made of."""

import os
import stat

import torch

from dinov2_zoo.training.power import CORE_WATTS, assumed_power


def test_cores_without_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    power = assumed_power()
    assert power.watts == os.cpu_count() * CORE_WATTS and f"{os.cpu_count()} cores" in power.how


def driver(folder, monkeypatch, says, code=0):
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{says}'\nexit {code}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_each_process_has_a_gpu_at_its_limit(tmp_path, monkeypatch):
    driver(tmp_path, monkeypatch, "700.00\\n700.00\\n")
    assert assumed_power().watts == 16 * 700


def test_a_driver_that_does_not_tell_leaves_the_cores(tmp_path, monkeypatch):
    driver(tmp_path, monkeypatch, "[N/A]\\n", code=0)
    assert "cores" in assumed_power().how
    driver(tmp_path, monkeypatch, "", code=9)
    assert "cores" in assumed_power().how
