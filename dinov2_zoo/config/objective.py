"""What the student is asked to match, and the heads that it takes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
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
    """Distillation by features, head-free: weights of its terms, 0 leaves a term out (chosen here, unless said)."""

    class_weight: float = 1.0
    """Weight of the class token's distance from the teacher's, through the projector."""
    patch_weight: float = 1.0
    """Weight of the same of patch tokens."""
    cosine_weight: float = 0.5
    """Share of 1 - cosine in each distance (EUPE: 0.9)."""
    smooth_l1_weight: float = 0.5
    """Share of smooth-L1 in each distance (EUPE: 0.1)."""
    mse_weight: float = 0.0
    """Share of the mean squared difference in each distance (PHI-S: 1, and the others 0)."""
    class_distance: Literal["same", "cosine"] = "same"
    """Distance of class tokens: "same": as of patch tokens; "cosine": 1 - cosine alone (EUPE)."""
    standardise: Literal["channels", "phi-s"] = "channels"
    """How the teacher's tokens are brought to one scale. "channels": each channel by its own mean and deviation;
    "phi-s": turned so that all channels have equal variance, then one scale for all (Ranzinger et al. 2024)."""
    projector: Literal["linear", "mlp"] = "linear"
    """From the student's tokens to the teacher's: linear maps, or MLPs of two layers (EUPE). Both begin as the same
    map, the ridge regression."""
    gram_weight: float = 10.0
    """Weight of the patch relations: cosines between the patches of a crop, their mean taken off, student's own
    against the teacher's."""
    class_gram_weight: float = 3.0
    """Weight of the same between the class tokens of a batch."""
    neighbour_weight: float = 0.0
    """Weight of the patch neighbours: which patches of the batch are near each other, student's own against the
    teacher's."""
    neighbour_patches: int = 8
    """Patches per crop that are neighbours of each other. Time and memory grow with its square times the batch's."""
    neighbour_temperature: float = 0.07
    """Temperature of both softmaxes over patches: a lower one looks at fewer neighbours."""
    queue_weight: float = 0.0
    """Weight of the class neighbours: which of the teacher's earlier class tokens a class token is near."""
    queue_size: int = 4096
    """Class tokens of the teacher that are kept, over all processes; at least those of one batch's global crops."""
    queue_temperature: float = 0.07
    """Temperature of both softmaxes over the queue."""

    def __post_init__(self) -> None:
        weights = [getattr(self, f.name) for f in fields(self) if f.name.endswith("_weight")]
        check(all(weight >= 0 for weight in weights), "weights of objective.features must be 0 or more.")
        terms = ("class_weight", "patch_weight", "gram_weight", "class_gram_weight", "neighbour_weight", "queue_weight")
        check(
            any(getattr(self, name) > 0 for name in terms),
            f"all terms of objective.features have weight 0, so nothing is learned: raise one of {', '.join(terms)}.",
        )
        measured = self.patch_weight > 0 or (self.class_weight > 0 and self.class_distance == "same")
        check(
            not measured or self.cosine_weight + self.smooth_l1_weight + self.mse_weight > 0,
            "cosine_weight, smooth_l1_weight and mse_weight of objective.features are all 0, so tokens have no "
            "distance: raise one of them.",
        )
        check(self.neighbour_patches >= 1, "objective.features.neighbour_patches must be at least 1.")
        check(self.queue_size >= 1, "objective.features.queue_size must be at least 1.")
        check(
            self.neighbour_temperature > 0 and self.queue_temperature > 0,
            "temperatures of objective.features must be above 0.",
        )

    def check_batch(self, images: int) -> None:
        """Raise ConfigError unless the queue holds the global crops of `images` images, those of one step."""
        check(
            self.queue_weight == 0 or self.queue_size >= 2 * images,
            f"objective.features.queue_size {self.queue_size} does not hold the 2 x {images} global crops of one "
            f"batch: use at least {2 * images}.",
        )


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the student is asked to match."""

    kind: Literal["features", "prototypes"] = "features"
    """"features": the teacher's tokens through a projector; works with any teacher and any student.
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
