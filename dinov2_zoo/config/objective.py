"""What the student is asked to match, and the heads that it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dinov2_zoo.config.checks import check


@dataclass(frozen=True)
class HeadConfig:
    """One projection head with prototypes (official `dino_head.py`; sizes of the ViT-L/14 and ViT-g/14 configs)."""

    prototypes: int = 131072
    """Number of prototypes K."""
    hidden: int = 2048
    """Width of the MLP's two hidden layers."""
    bottleneck: int = 256
    """Width of the unit vector that meets the prototypes (official: DINO 384, iBOT 256)."""


@dataclass(frozen=True)
class PrototypesConfig:
    """Distillation by prototypes, the paper's way (paper section 5; weights and temperatures: official configs)."""

    dino_weight: float = 1.0
    """Weight of the class-token loss over crop pairs."""
    ibot_weight: float = 1.0
    """Weight of the patch-token loss on the two global crops."""
    koleo_weight: float = 0.1
    """Weight of the KoLeo regulariser, per global view."""
    student_temperature: float = 0.1
    """Temperature of the student's softmax."""
    teacher_temperature: float = 0.07
    """Temperature of the teacher's softmax (official end value; a frozen teacher needs no warm-up)."""
    centering: Literal["sinkhorn", "ema"] = "sinkhorn"
    """How targets are balanced: Sinkhorn-Knopp over the global batch (ViT-L/14, ViT-g/14) or an EMA centre."""
    sinkhorn_iterations: int = 3
    """Sinkhorn-Knopp iterations (official: 3)."""
    center_momentum: float = 0.9
    """Momentum of the EMA centre (official: 0.9)."""
    chunk: int = 4096
    """Tokens per block when logits are computed; bounds memory, does not change the result beyond rounding."""

    def __post_init__(self) -> None:
        check(self.student_temperature > 0 and self.teacher_temperature > 0, "temperatures must be above 0.")
        check(self.chunk >= 1, "objective.prototypes.chunk must be at least 1.")


@dataclass(frozen=True)
class FeaturesConfig:
    """Distillation by features, head-free (chosen here, after the losses of UNIC and Proteus)."""

    class_weight: float = 1.0
    """Weight of the class-token term."""
    patch_weight: float = 1.0
    """Weight of the patch-token term."""
    cosine_weight: float = 0.5
    """Share of 1 - cosine in each term."""
    smooth_l1_weight: float = 0.5
    """Share of smooth-L1 in each term."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the student is asked to match."""

    kind: Literal["features", "prototypes"] = "features"
    """"features": the teacher's tokens through a linear projector; works with any teacher and any student.
    "prototypes": the paper's DINO + iBOT + KoLeo; the teacher must come with its heads."""
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    """Settings of kind "features"."""
    prototypes: PrototypesConfig = field(default_factory=PrototypesConfig)
    """Settings of kind "prototypes"."""
    patch_share: float = 1.0
    """Share of each global crop's patch tokens in the iBOT loss of kind "prototypes"; 1 is all of them, as the
    maintainers state."""

    def __post_init__(self) -> None:
        check(0 < self.patch_share <= 1, "objective.patch_share must be above 0 and at most 1.")
        check(
            self.patch_share == 1 or self.kind == "prototypes",
            "objective.patch_share samples patches for iBOT, which kind features has not: leave it at 1.",
        )
