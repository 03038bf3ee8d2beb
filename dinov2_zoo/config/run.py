"""What every training run can be told, whatever it trains."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dinov2_zoo.config.auto import AUTO, is_auto, seconds
from dinov2_zoo.config.checks import check
from dinov2_zoo.config.data import CropConfig, LoaderConfig
from dinov2_zoo.config.training import CheckpointConfig, EvaluationConfig, LogConfig, OptimConfig, RuntimeConfig

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class RunConfig:
    """Images, length, crops, optimizer, devices, checkpoints, log."""

    data: str = ""
    """Training images: a folder, a list file (.txt), tar shards ("shards-{000..009}.tar"), parquet, `hf:<dataset>`,
    or `package:photos/train`."""
    name: str = AUTO
    """Name of the run; everything it writes goes to <runs>/<name>/. "auto": from the network's and the data's name."""
    runs: str = "runs"
    """Folder that holds the runs."""
    epochs: float | None = None
    """Length of the training in passes over the images; it takes the place of optim.steps."""
    time: str | None = None
    """Length of the whole run, "20m" or "1h30m", in place of optim.steps: how long a step takes is measured first."""
    crops: CropConfig = field(default_factory=CropConfig)
    """Augmentation."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """Reading and batching."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and schedules."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """Devices, precision and randomness."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Training checkpoints."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Measurements."""
    log: LogConfig = field(default_factory=LogConfig)
    """Logging."""

    def __post_init__(self) -> None:
        check(self.epochs is None or self.time is None, "epochs and time both say how long to train: give one of them.")
        check(self.epochs is None or self.epochs > 0, "epochs must be above 0.")
        check(
            self.time is None or (seconds(self.time) or 0) > 0,
            f'time "{self.time}" is no duration: write 90s, 20m, 1h30m or 2d.',
        )
        if not is_auto(self.loader.batch_size):
            check(
                self.loader.batch_size % self.optim.accumulate == 0,
                f"loader.batch_size {self.loader.batch_size} does not divide by optim.accumulate "
                f"{self.optim.accumulate}: choose a batch that does.",
            )

    @property
    def network(self) -> str:
        """Name of what is trained, for names of runs."""
        raise NotImplementedError

    @property
    def folder(self) -> Path:
        """The run folder."""
        if not is_auto(self.name):
            return Path(self.runs) / self.name
        parts = [self.network, Path(self.data.removeprefix("package:").split("/train")[0]).stem]
        return Path(self.runs) / run_name(*parts)

    def each(self) -> Sequence[Self]:
        """The configuration of each run that this one stands for, as if it were asked for alone, with its name."""
        return [dataclasses.replace(self, name=self.folder.name) if is_auto(self.name) else self]

    def check_patch(self, patch: int) -> None:
        """Raise ConfigError unless crops and evaluated images divide into patches of `patch` pixels."""
        self.crops.check_patch(patch)
        self.evaluation.check_patch(patch)


def run_name(*parts: str) -> str:
    """Words as the name of a folder: what is no letter, digit or full stop becomes a hyphen."""
    return "-".join(re.sub(r"[^\w.]+", "-", part).strip("-.") for part in parts if part)
