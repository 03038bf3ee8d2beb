"""Everything that `recipes/pretrain.py` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dinov2_zoo.config.auto import at_least
from dinov2_zoo.config.checks import check
from dinov2_zoo.config.data import MaskConfig
from dinov2_zoo.config.objective import HeadConfig, PrototypesConfig
from dinov2_zoo.config.run import RunConfig
from dinov2_zoo.config.training import EvaluationConfig, OptimConfig


@dataclass(frozen=True)
class SelfDistillationConfig:
    """What self-distillation has beside its losses (official `ssl_default_config.yaml`, `vitg14.yaml`)."""

    first_temperature: float = 0.04
    """Teacher's temperature at the first step; it rises linearly to losses.teacher_temperature."""
    temperature_warmup_steps: int = 37_500
    """Steps of that rise (official: 30 epochs of 1250); half of the run at most."""
    drop_path: float = 0.4
    """Share of the sequences that each residual branch leaves out (paper: 0.4 for g; official short config: 0.3)."""
    tied_heads: bool = False
    """One head for class and patch tokens (official short config) instead of one each (paper, from L on)."""

    def __post_init__(self) -> None:
        check(self.first_temperature > 0, "self_distillation.first_temperature must be above 0.")
        check(self.temperature_warmup_steps >= 0, "temperature_warmup_steps must be 0 or more.")
        check(0 <= self.drop_path < 1, "self_distillation.drop_path is a share below 1.")


@dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """Train a teacher with its heads, from images alone."""

    model: str = "vits14"
    """Network: a name of `dinov2_zoo.list_models()`."""
    patch_size: int = 14
    """Side of a patch, pixels (paper: 14; the official short config: 16)."""
    ffn: Literal["mlp", "swiglu"] | None = None
    """Feed-forward; default: the named network's own. (Trained from scratch, the paper's L has SwiGLU too.)"""
    init: str = "random"
    """First weights: "random", or a Hub id, folder or file, as for `Dinov2Model.from_pretrained`; a heads.safetensors
    beside them is used too."""
    freeze_backbone: bool = False
    """Train the heads alone, on the backbone of `init` (see `recipes/fit_heads.py`)."""
    masks: MaskConfig = field(default_factory=MaskConfig)
    """Patches hidden from the student."""
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
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Measurements: k-NN, where there are labelled images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            at_least(self.loader.batch_size, 2),
            "loader.batch_size 1 leaves KoLeo without neighbours and Sinkhorn-Knopp with nothing to balance: "
            "use 2 at least, some hundreds for a good teacher.",
        )
        check(not self.freeze_backbone or self.init != "random", "freeze_backbone needs a backbone: set init.")
        check(
            not self.crops.mix,
            "crops.mix shows other images in each view, and the views of one image must be matched: set it to 0.",
        )

    @property
    def network(self) -> str:
        """The network's name, or that of the weights it goes on from."""
        return self.model if self.init == "random" else Path(self.init).name
