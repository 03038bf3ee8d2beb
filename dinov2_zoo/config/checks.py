"""What the configurations share: raising, naming usable sizes, turning into plain dicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, get_type_hints

from dinov2_zoo.errors import ConfigError

T = TypeVar("T")

_found: ContextVar[list[str] | None] = ContextVar("found", default=None)


def check(condition: bool, message: str) -> None:
    """Raise ConfigError with `message` unless `condition` holds; within `all_problems`, note it and go on."""
    if condition:
        return
    found = _found.get()
    if found is None:
        raise ConfigError(message)
    if message not in found:
        found.append(message)


@contextmanager
def all_problems() -> Generator[None, None, None]:
    """Within the block failed checks do not raise one by one: at its end, one ConfigError names all of them.

    What is checked must still be safe to go on with. An error of another kind ends the block at once, behind the
    problems found so far.
    """
    if _found.get() is not None:  # already within one
        yield
        return
    found: list[str] = []
    token = _found.set(found)
    try:
        yield
    except ConfigError as error:
        found.append(str(error))
    finally:
        _found.reset(token)
    if found:
        lines = "".join(f"\n  - {message}" for message in found)
        raise ConfigError(found[0] if len(found) == 1 else f"{len(found)} settings cannot work:{lines}")


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
        elif isinstance(value, list):  # as JSON has tuples
            found[name] = tuple(value)
    return kind(**found)
