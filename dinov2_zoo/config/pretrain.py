"""Everything that `recipes/pretrain.py` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dinov2_zoo.config.checks import check
from dinov2_zoo.config.data import CropConfig, LoaderConfig, MaskConfig
from dinov2_zoo.config.objective import HeadConfig, PrototypesConfig
from dinov2_zoo.config.training import CheckpointConfig, EvaluationConfig, LogConfig, OptimConfig, RuntimeConfig


@dataclass(frozen=True)
class SelfDistillationConfig:
    """What self-distillation has beside its losses (official `ssl_default_config.yaml`, `vitg14.yaml`)."""

    first_temperature: float = 0.04
    """Teacher's temperature at the first step; it rises linearly to losses.teacher_temperature."""
    temperature_warmup_steps: int = 37_500
    """Steps of that rise (official: 30 epochs of 1250)."""
    drop_path: float = 0.4
    """Share of the sequences that each residual branch leaves out (paper: 0.4 for g; official short config: 0.3)."""
    tied_heads: bool = False
    """One head for class and patch tokens (official short config) instead of one each (paper, from L on)."""

    def __post_init__(self) -> None:
        check(self.first_temperature > 0, "self_distillation.first_temperature must be above 0.")
        check(self.temperature_warmup_steps >= 0, "self_distillation.temperature_warmup_steps must be 0 or more.")
        check(0 <= self.drop_path < 1, "self_distillation.drop_path is a share below 1.")


@dataclass(frozen=True)
class PretrainConfig:
    """Train a teacher with its heads, from images alone."""

    name: str = "pretrain"
    """Name of the run; everything it writes goes to <runs>/<name>/."""
    runs: str = "runs"
    """Folder that holds the runs."""
    data: str = ""
    """Training images: a folder, a list file (.txt), tar shards ("shards-{000..009}.tar"), parquet, `hf:<dataset>`,
    or `package:photos/train`."""
    model: str = "vits14"
    """Network: a name of `dinov2_zoo.list_models()`."""
    patch_size: int = 14
    """Side of a patch, pixels (paper: 14; the official short config: 16)."""
    ffn: Literal["mlp", "swiglu"] | None = None
    """Feed-forward; default: the named network's own. (Trained from scratch, the paper's L has SwiGLU too.)"""
    init: str | None = None
    """Weights to begin with: Hub id, folder or file, as for `Dinov2Model.from_pretrained`; a heads.safetensors beside
    them is used too. Default: random weights."""
    freeze_backbone: bool = False
    """Train the heads alone, on the backbone of `init` (see `recipes/fit_heads.py`)."""
    crops: CropConfig = field(default_factory=CropConfig)
    """Augmentation."""
    masks: MaskConfig = field(default_factory=MaskConfig)
    """Patches hidden from the student."""
    loader: LoaderConfig = field(default_factory=lambda: LoaderConfig(batch_size=3072))
    """Reading and batching (paper: 3072 images per step for g)."""
    dino_head: HeadConfig = field(default_factory=lambda: HeadConfig(bottleneck=384))
    """Class-token head."""
    ibot_head: HeadConfig = field(default_factory=HeadConfig)
    """Patch-token head; unused with self_distillation.tied_heads."""
    losses: PrototypesConfig = field(default_factory=PrototypesConfig)
    """DINO, iBOT, KoLeo."""
    self_distillation: SelfDistillationConfig = field(default_factory=SelfDistillationConfig)
    """Temperature of the teacher, stochastic depth, tied heads."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(base_lr=2e-4))
    """Optimizer and schedules (official: 2e-4, that is 3.5e-4 at 3072 images; the EMA is the teacher)."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """Devices, precision and randomness."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Training checkpoints."""
    evaluation: EvaluationConfig = field(default_factory=lambda: EvaluationConfig(heldout_count=0))
    """Measurements: k-NN, where there are labelled images."""
    log: LogConfig = field(default_factory=LogConfig)
    """Logging."""

    def __post_init__(self) -> None:
        check(
            self.loader.batch_size % self.optim.accumulate == 0,
            f"loader.batch_size {self.loader.batch_size} does not divide by optim.accumulate {self.optim.accumulate}: "
            "choose a batch that does.",
        )
        check(
            self.loader.batch_size >= 2,
            "loader.batch_size 1 leaves KoLeo without neighbours and Sinkhorn-Knopp with nothing to balance: "
            "use 2 at least, some hundreds for a good teacher.",
        )
        check(not self.freeze_backbone or self.init is not None, "freeze_backbone needs a backbone: set init.")

    def check_patch(self, patch: int) -> None:
        """Raise ConfigError unless crops and evaluated images divide into patches of `patch` pixels."""
        self.crops.check_patch(patch)
        self.evaluation.check_patch(patch)
