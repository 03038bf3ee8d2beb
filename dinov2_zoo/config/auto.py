"""Settings that follow from what is there: "auto" until `training/plan.py` settles them, before anything reads them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

AUTO: Any = "auto"
"""Default of a setting that is settled later, whatever its type."""

if TYPE_CHECKING:  # to whoever reads a settled configuration these are plain numbers
    AutoBool = bool
    AutoInt = int
    AutoPair = tuple[float, float]
else:
    AutoBool = bool | Literal["auto"]
    AutoInt = int | Literal["auto"]
    AutoPair = tuple[float, float] | Literal["auto"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def is_auto(value: Any) -> bool:
    """True for a setting that is still to be settled."""
    return isinstance(value, str) and value == AUTO


def at_least(value: Any, least: float) -> bool:
    """True for a number that is not below `least`, and for "auto"."""
    return is_auto(value) or value >= least


def seconds(text: str) -> float | None:
    """Seconds of a duration such as "90s", "20m", "1h30m" or "2d"; None if it is none."""
    parts = re.fullmatch(r"((\d+(\.\d+)?)[smhd])+", text.strip().lower())
    if parts is None:
        return None
    return sum(float(n) * _UNITS[u] for n, u in re.findall(r"(\d+(?:\.\d+)?)([smhd])", text.strip().lower()))
