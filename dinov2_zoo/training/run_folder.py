"""The folder of one run: claimed once, so that two runs never mix, and stamped with where its numbers come from."""

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from dinov2_zoo.errors import ConfigError

PACKAGES = ("dinov2-zoo", "torch", "torchvision", "timm", "accelerate", "safetensors", "huggingface_hub")

# Settings that may change when a run is resumed: they do not alter what is learnt. (evaluation.heldout_count does:
# it takes images out of training.)
FREE_ON_RESUME = (
    *("runs", "log", "checkpoint", "loader.workers", "runtime.threads"),
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


def check_run_folder(folder: Path, config: dict[str, Any], *, resume: bool) -> None:
    """Raise unless a run with this configuration may write to `folder`; creates nothing.

    Raises:
        ConfigError: The folder holds another run, is not a run, or was made with other settings.
    """
    record = folder / "config.json"
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not record.exists():
        raise ConfigError(f"{folder} holds other files but no run: choose another --name.")
    if not resume:
        raise ConfigError(f"{folder} already holds a run: continue it with --resume, or choose another --name.")
    changed = differences(json.loads(record.read_text())["config"], json.loads(json.dumps(config)))
    if changed:
        raise ConfigError(
            f"{folder} was made with other settings ({'; '.join(changed)}): resume with those, or choose a new --name."
        )


def claim_run_folder(folder: Path, config: dict[str, Any]) -> None:
    """Create the folder and write config.json: the resolved settings and where the numbers come from."""
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "config.json"
    if record.exists():
        return
    partial = folder / "config.json.part"
    partial.write_text(json.dumps({"config": config, "provenance": provenance()}, indent=2) + "\n")
    partial.replace(record)
