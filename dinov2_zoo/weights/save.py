"""Tensors into a file, whole or not at all, with the rights of the user's umask, and errors that say what to do."""

import contextlib
import os
from collections.abc import Generator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dinov2_zoo.errors import ConfigError, first_line
from dinov2_zoo.files import atomic_write


def save_tensors(tensors: Mapping[str, Tensor], file: Path, about: Mapping[str, str] | None = None) -> None:
    """Write a `.safetensors` file.

    Args:
        tensors: Contiguous, none sharing memory with another.
        file: To be written or replaced.
        about: For the file's header.
    """
    with atomic_write(file) as partial:
        try:
            save_file(dict(tensors), partial, dict(about or {}))
            give_rights(partial)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def give_rights(file: Path) -> None:
    """Let a file be read by whom the umask says: safetensors writes for the owner alone."""
    probe = file.with_name(f".{file.name}.{os.getpid()}.rights")
    probe.touch()
    file.chmod(probe.stat().st_mode)
    probe.unlink()


@contextlib.contextmanager
def writing(place: Path) -> Generator[None, None, None]:
    """Turn what keeps a file or folder from being written into one sentence.

    Raises:
        ConfigError: The place is read-only, full, or below a file.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        if (file := getattr(error, "filename", None)) and str(file) != str(place):
            reason += f": {file}"
        raise ConfigError(
            f"{place} cannot be written ({reason}): name a place where you may write and that has room."
        ) from error
