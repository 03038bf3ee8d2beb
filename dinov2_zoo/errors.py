"""Every error a user can cause. Each message says what is wrong and ends with what to do."""

import importlib.util
import os
import shlex
import shutil
import sys
from pathlib import Path


class ZooError(Exception):
    """Base of all errors that a user's input, files or settings can cause."""

    exit_code = 2
    """What a recipe exits with."""


class ConfigError(ZooError, ValueError):
    """A setting is unknown, out of range, or does not fit another setting."""


class DataError(ZooError):
    """Images are missing, unreadable, or too few."""


class CheckpointError(ZooError):
    """Weights or a training checkpoint cannot be read, or do not fit the model."""


class HubError(ZooError):
    """A model cannot be fetched from, or sent to, the Hub."""


class TrainingError(ZooError):
    """Training cannot go on: the loss is not finite, or processes disagree."""


class Preempted(ZooError):  # noqa: N818 (it is no error)
    """Not a mistake: the run was told to stop, has saved itself, and can be resumed."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: the same command with --resume goes on."""


def first_line(error: Exception) -> str:
    """What another library's error says first, without its last stop: for the middle of a sentence of ours."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__


def how_to_install(*packages: str) -> str:
    """The command that installs packages into the environment that runs this, for the end of a message.

    Args:
        packages: Requirements such as "onnx>=1.17"; options of pip may stand among them ("--no-deps").

    Returns:
        A line for a shell, in backquotes: this interpreter's pip, or uv where the environment was made without pip.
    """
    # An interpreter below the working folder is named as one would type it: .venv/bin/python.
    python, here = Path(sys.executable), Path.cwd()
    name = os.fspath(python.relative_to(here) if python.is_relative_to(here) else python)
    with_pip = importlib.util.find_spec("pip") is not None or shutil.which("uv") is None
    installer = [name, "-m", "pip", "install"] if with_pip else ["uv", "pip", "install", "--python", name]
    return f"`{shlex.join([*installer, *packages])}`"
