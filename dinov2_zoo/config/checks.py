"""What the configurations share: raising, naming usable sizes, turning into plain dicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_origin, get_type_hints

from dinov2_zoo.errors import ConfigError

T = TypeVar("T")


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


def from_dict(kind: type[T], values: Mapping[str, Any]) -> T:
    """The opposite of `to_dict`, for one that was written to JSON by this version or an earlier one.

    Raises:
        ConfigError: A setting no longer exists.
    """
    hints, found = get_type_hints(kind), dict(values)
    unknown = sorted(found.keys() - hints.keys())
    check(not unknown, f"{kind.__name__} has no {', '.join(unknown)}: the run was made by another version.")
    for name, value in found.items():
        if dataclasses.is_dataclass(hints[name]):
            found[name] = from_dict(hints[name], value)  # pyright: ignore[reportArgumentType]
        elif get_origin(hints[name]) is tuple:
            found[name] = tuple(value)
    return kind(**found)
