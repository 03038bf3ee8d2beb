"""TensorBoard, Weights & Biases and whatever else accelerate can speak to; one that fails never stops a run."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from dinov2_zoo.errors import ConfigError


class Trackers:
    """The trackers that an `Accelerator` was made with.

    Args:
        accelerator: Made with `log_with`; without trackers every call does nothing.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._started = False

    def start(self, name: str, config: Mapping[str, Any]) -> str | None:
        """Open the trackers for a run, if any were asked for; `config` is its nested settings.

        Returns:
            A sentence to print when they cannot be opened: the run goes on without them. None when all is well.
        """
        try:
            self._accelerator.init_trackers(name, config=_flat(config))
        except Exception as error:  # whatever a tracker's own client raises
            return _lost_tracker(error)
        self._started = bool(self._accelerator.log_with)
        return None

    def log(self, values: Mapping[str, float], step: int) -> str | None:
        """Send numbers to the trackers; nothing happens where none was started.

        Returns:
            A sentence to print when that fails: from then on nothing is sent. None when all is well.
        """
        if self._started:
            try:
                self._accelerator.log(dict(values), step=step)
            except Exception as error:  # whatever a tracker's own client raises
                self._started = False
                return _lost_tracker(error)
        return None


def check_trackers(names: Sequence[str]) -> None:
    """Refuse what accelerate would drop: it leaves out a tracker whose package is missing without a word.

    Raises:
        ConfigError: Names the tracker and those that can be had here.
    """
    have = sorted(str(t) for t in get_available_trackers())
    for name in names:
        if name not in have:
            raise ConfigError(
                f"Tracker `{name}` is unknown to accelerate or its package is not installed (here: "
                f"{', '.join(have) or 'none'}): `pip install {name}`, or choose another in log.trackers."
            )
    logging.getLogger("accelerate.tracking").setLevel(logging.ERROR)


def _lost_tracker(error: Exception) -> str:
    words = " ".join(str(error).split())[:200]
    return f"The tracker failed ({type(error).__name__}: {words}): the run goes on without it; metrics.jsonl has all."


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Nested settings as dotted names with plain values, all that trackers store."""
    flat: dict[str, int | float | str | bool] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(cast(Mapping[str, Any], value), f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
