"""The manifest of a checkpoint folder: its files with sizes and checksums, so that a damaged one is never trusted."""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.files import is_sealed, sha256_of, write_sealed

FORMAT = 2
"""Version of the layout of a checkpoint folder."""

MANIFEST = "manifest.json"


def file_checksums(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of files, by name; several at a time."""
    paths = list(files)
    with ThreadPoolExecutor(4) as pool:
        sums = list(pool.map(sha256_of, paths))
    return {path.name: {"bytes": path.stat().st_size, "sha256": s} for path, s in zip(paths, sums, strict=True)}


def write_manifest(folder: Path, record: dict[str, Any]) -> None:
    """Write the manifest, with a checksum of itself, and see it on the disk."""
    write_sealed(folder / MANIFEST, {"format": FORMAT, **record})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The record of a folder with a manifest.

    Raises:
        CheckpointError: There is none, it is damaged, or another version wrote it.
    """
    try:
        record = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is not a whole checkpoint: name a step-N folder with a manifest.") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        written = record.get("format") if isinstance(record, dict) else None
        raise CheckpointError(
            f"{folder} has checkpoint format {written}, this version reads {FORMAT}: "
            "resume with the version that wrote it."
        )
    if not is_sealed(record):
        raise CheckpointError(f"{folder}/{MANIFEST} is damaged: delete the folder, resume takes the one before.")
    return record


def check_files(folder: Path) -> dict[str, Any]:
    """The record of a folder with a manifest whose every byte is as it was written.

    Raises:
        CheckpointError: As `read_manifest`; or a file is missing, cut short or changed.
    """
    record = read_manifest(folder)
    files: dict[str, dict[str, Any]] = record["files"]
    for name, expected in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != expected["bytes"]:
            what = "is missing" if size is None else f"has {size:,} bytes of {expected['bytes']:,}"
            raise CheckpointError(f"{path} {what}: delete {folder.name}, resume takes the one before.")
    for name, found in file_checksums(folder / name for name in files).items():
        if found != files[name]:
            raise CheckpointError(f"{folder / name} was changed since it was written: delete {folder.name}.")
    return record
