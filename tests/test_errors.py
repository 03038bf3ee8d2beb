"""Remedies are true where they are printed."""

import importlib.util
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from dinov2_zoo.errors import how_to_install


def test_packages_go_into_the_environment_that_runs():
    words = shlex.split(how_to_install("onnx>=1.17", "onnxruntime").strip("`"))
    assert words[1:] == ["-m", "pip", "install", "onnx>=1.17", "onnxruntime"]
    said = subprocess.run([words[0], "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == sys.prefix


def test_an_interpreter_below_the_working_folder_is_named_as_one_types_it(monkeypatch):
    python = Path(sys.executable)
    monkeypatch.chdir(python.parents[2])
    assert how_to_install("onnx").startswith(f"`{python.relative_to(Path.cwd())} -m pip")


def test_an_environment_without_pip_is_served_by_uv(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert how_to_install("onnx").startswith("`uv pip install --python ")
