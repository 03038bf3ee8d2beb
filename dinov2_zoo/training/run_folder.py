"""The folder of one run: claimed once, so that two runs never mix, and stamped with where its numbers come from."""

import contextlib
import errno
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

from dinov2_zoo.errors import ConfigError
from dinov2_zoo.files import atomic_write, try_writing
from dinov2_zoo.training.power import assumed_power

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
"""Name of the file that a run in progress holds."""

PACKAGES = ("dinov2-zoo", "torch", "torchvision", "timm", "accelerate", "safetensors", "huggingface_hub")

# Settings that may change when a run is resumed: they do not alter what is learnt. (evaluation.heldout_count does:
# it takes images out of training.)
FREE_ON_RESUME = (
    *("name", "runs", "log", "checkpoint", "loader.workers", "runtime.threads", "verify_targets"),
    *(f"evaluation.{name}" for name in ("every", "pictures", "size", "labelled", "labelled_size")),
)


def provenance() -> dict[str, str]:
    """Versions, git revision and machine that a run's numbers come from."""
    versions: dict[str, str] = {"python": platform.python_version(), "machine": processor_name()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    versions["git"] = _git_revision()
    return versions


def processor_name() -> str:
    """The processor's name and core count, for a figure's caption."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores"


def _git_revision() -> str:
    """Revision of this package's checkout, with "-dirty" when files differ from it; "unknown" outside git."""
    here = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings that differ between two nested configurations, as "name: old -> new", without the free ones."""
    found: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        name = f"{prefix}{key}"
        if name in FREE_ON_RESUME:
            continue
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{name}.")
        elif a != b:
            found.append(f"{name}: {a} -> {b}")
    return found


def check_run_folder(folder: Path, config: dict[str, Any], *, resume: str | None) -> None:
    """Raise unless a run with this configuration may write to `folder`, and can; leaves nothing there.

    With `checkpoint.allow_changes`, other settings than the run's may be resumed with.

    Raises:
        ConfigError: The folder holds another run, is not a run, was made with other settings, or cannot be written.
    """
    record = folder / "config.json"
    _check_writable(folder)
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not record.exists():
        raise ConfigError(f"{folder} holds other files but no run: choose another --name.")
    if not resume:
        raise ConfigError(f"{folder} already holds a run: continue it with --resume, or choose another --name.")
    changed = differences(json.loads(record.read_text())["config"], json.loads(json.dumps(config)))
    if changed and not config.get("checkpoint", {}).get("allow_changes"):
        raise ConfigError(
            f"{folder} was made with other settings ({'; '.join(changed)}): resume with those, choose a new --name, "
            "or say --checkpoint.allow_changes true."
        )


def _check_writable(folder: Path) -> None:
    try:
        try_writing(folder)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror}): make room or the folder writable, or choose another place "
            "with --runs."
        ) from error


def claim_run_folder(folder: Path, config: dict[str, Any]) -> None:
    """Create the folder and write config.json: the resolved settings and where the numbers come from.

    Settings that a resumed run was allowed to change take the place of the old, which move to "changes".
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "config.json"
    config, changes = json.loads(json.dumps(config)), list[Any]()
    if record.exists():
        before = json.loads(record.read_text())
        changed = differences(before["config"], config)
        if not changed:
            return
        changes = [*before.get("changes", []), {"settings": changed, "provenance": before["provenance"]}]
    entries = {"config": config, "provenance": provenance(), "power": vars(assumed_power())}
    entries |= {"changes": changes} if changes else {}
    with atomic_write(record) as partial:
        partial.write_text(json.dumps(entries, indent=2) + "\n")


@contextlib.contextmanager
def hold_run_folder(folder: Path) -> Generator[None, None, None]:
    """Keep other processes from writing to a run folder; the hold ends with the process, however it ends.

    Raises:
        ConfigError: Another process holds it.
    """
    with (folder / LOCK).open("a+") as file:
        if not _lock(file):
            file.seek(0)
            raise ConfigError(
                f"{folder} is being written by {file.read().strip() or 'another process'}: wait for it to end, "
                "stop it, or choose another --name."
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def holder(folder: Path) -> str | None:
    """Which process is writing a run folder, such as "process 42 on node7"; None when none is."""
    if not (folder / LOCK).exists():
        return None
    with (folder / LOCK).open("r+") as file:
        return None if _lock(file) else file.read().strip()


def _lock(file: IO[str]) -> bool:
    """Lock a file for this process until it is closed; False when another process has it.

    A POSIX lock: unlike flock's it is not inherited by decoding processes, which may outlive a killed run.
    """
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # File systems without locks cannot tell: then nothing is held.
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True
