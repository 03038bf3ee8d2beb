"""What one evaluation found, and under which rules, as one JSON file: enough to judge whether two may be compared."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dinov2_zoo.errors import DataError
from dinov2_zoo.files import atomic_write
from dinov2_zoo.training.run_folder import provenance

FORMAT = 2
"""Number of the record's form; a record of another form is never taken for what was asked."""


@dataclass(frozen=True)
class DataFacts:
    """Which images an evaluation saw."""

    source: str
    """As it was named on the command line."""
    images: Mapping[str, int]
    """Number by split, as in {"train": 24231, "test": 654}."""
    checksum: str
    """`checksum` of the names and labels of all of them in order; pixels are not read for it."""


@dataclass(frozen=True)
class Result:
    """What a protocol returns."""

    metrics: Mapping[str, float]
    """Every number it gave, by name."""
    headline: str
    """Name of the metric that stands in tables."""
    protocol: Mapping[str, Any]
    """Every setting that the metrics depend on."""
    data: DataFacts
    notes: list[str] = field(default_factory=list)
    """What a reader must know to judge the metrics, such as how a winner was chosen."""

    def __post_init__(self) -> None:
        assert self.headline in self.metrics, self.headline


def checksum(parts: Iterable[object]) -> str:
    """Short digest of names, labels and whatever else tells one data set from another, in order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\n".encode())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Computed:
    """How a result was computed: what may explain a small difference between two of the same protocol."""

    processes: int
    """Processes that shared the work; a few training losses are taken over each one's part of a batch."""
    device: str
    """Kind of device: cpu, cuda."""
    seconds: float
    """Duration."""


def write_record(
    folder: Path, model: str, task: str, result: Result, *, asked: Mapping[str, Any], computed: Computed
) -> dict[str, Any]:
    """Write a result as `folder/<task>.json`, with versions and hardware; returns what it holds.

    Two records may be compared if their task, protocol and data are equal.

    Args:
        folder: Made if needed.
        model: As it was named.
        task: As it was named, "depth:lin4".
        result: What was found.
        asked: All that the metrics depend on: settings, data, precision, the fingerprint of the weights.
        computed: On what, and how long.
    """
    entry = {
        "format": FORMAT,
        "model": model,
        "task": task,
        "headline": result.headline,
        "metrics": dict(result.metrics),
        "protocol": dict(result.protocol),
        "data": {**vars(result.data), "images": dict(result.data.images)},
        "notes": result.notes,
        "asked": dict(asked),
        "computed": {**vars(computed), "seconds": round(computed.seconds, 1)},
        "provenance": provenance(),
    }
    path = _path(folder, task)
    text = json.dumps(entry, indent=1, default=str) + "\n"
    with atomic_write(path) as partial:
        partial.write_text(text)
    return json.loads(text)


def cached_record(folder: Path, task: str, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of a task that was measured before with exactly what is asked for now, if there is one."""
    path = _path(folder, task)
    if not path.is_file():
        return None
    try:
        entry = json.loads(path.read_text())
    except ValueError:  # it is about to be written anew
        return None
    same = entry.get("format") == FORMAT and entry.get("asked") == json.loads(json.dumps(asked, default=str))
    return entry if same else None


def _path(folder: Path, task: str) -> Path:
    return folder / f"{task.replace(':', '-')}.json"


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All records in a folder, by file name.

    Raises:
        DataError: One cannot be read.
    """
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(json.loads(path.read_text()))
        except ValueError as error:
            raise DataError(f"{path} is no record of an evaluation ({error}): remove it and evaluate again.") from error
    return found
