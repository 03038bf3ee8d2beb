"""Where an evaluation computes, keeps its work and reports how far it is."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dinov2_zoo.training.distributed import DistributedContext

Say = Callable[[str], object]
"""Takes a line of progress."""


def silent(line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Workspace:
    """What a protocol is given besides the model, its data and its settings."""

    context: DistributedContext
    """The processes that share the work, and where they compute."""
    folder: Path
    """One model's: stored features, heads and probes that can be resumed, records."""
    say: Say = silent
    """Called now and then."""
    precision: str = "fp32"
    """Precision of the model's forward passes, for records."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.context.device

    def within(self, *names: str) -> "Workspace":
        """The same in a folder below."""
        return replace(self, folder=self.folder.joinpath(*names))
