"""A task: one way to measure a model, and all that the suite, its records and its table need to know of it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dinov2_zoo.config import to_dict
from dinov2_zoo.config.evaluate import EvaluateConfig
from dinov2_zoo.evaluation.encoders.encoder import LayeredEncoder
from dinov2_zoo.evaluation.record import Result
from dinov2_zoo.evaluation.workspace import Workspace

Opener = Callable[[Callable[[str], Any], str], Any]
"""Opens data by a reader and a line of text, or gives what was opened before: a walk over ImageNet takes minutes."""

Run = Callable[[LayeredEncoder, Any, Any, Workspace], Result]
"""Measures a model on opened data by settings."""


def no_data(config: EvaluateConfig, opened: Opener) -> None:
    """Open nothing."""


def no_more_rows(metrics: Iterable[str]) -> dict[str, str]:
    """Show the headline only."""
    return {}


@dataclass(frozen=True, eq=False)
class Task:
    """One way to measure a model. The folder of its protocol exports it in `TASKS`; `suite.TASKS` collects them."""

    name: str
    """As on the command line: depth:lin4."""
    run: Run
    """The protocol."""
    settings: str | None = None
    """Field of `EvaluateConfig` with its settings; None: it has none."""
    open: Callable[[EvaluateConfig, Opener], Any] = no_data
    """Opens its data; must find out whatever can be wrong with them, for it is called before any model is measured."""
    data: tuple[str, ...] = ()
    """Fields of `EvaluationData` that its metrics depend on; the first must be named."""
    units: Mapping[str, str] = field(default_factory=dict[str, str])
    """Metric and unit of what its table rows show, by metric; shares are shown in percent if the text ends with it."""
    title: str = "{name}"
    """First cell of its row; may hold the task's `name` and entries of the record's protocol."""
    more_rows: Callable[[Iterable[str]], dict[str, str]] = no_more_rows
    """From all metrics to those that have a row besides the headline's, by the word that tells the row apart."""

    def asked(self, config: EvaluateConfig) -> dict[str, Any]:
        """All that was asked for and that the metrics depend on."""
        own = to_dict(getattr(config, self.settings)) if self.settings else {}
        return {**own, "seed": config.runtime.seed, "data": {name: getattr(config.data, name) for name in self.data}}

    def unit(self, metric: str) -> str:
        """What the table calls a metric."""
        return self.units.get(metric, f"{metric}, %")
