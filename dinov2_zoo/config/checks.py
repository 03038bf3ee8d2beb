"""What the configurations share: raising, naming usable sizes, turning into plain dicts."""

from __future__ import annotations

import dataclasses
from typing import Any

from dinov2_zoo.errors import ConfigError


def check(condition: bool, message: str) -> None:
    """Raise ConfigError with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def nearest_multiples(size: int, patch: int) -> str:
    """The usable sizes around `size`, as words for an error message: "210 or 224"."""
    low = size // patch * patch
    return f"{low} or {low + patch}" if low > 0 else f"{patch}"


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain nested dicts, ready for JSON."""
    return dataclasses.asdict(config)
