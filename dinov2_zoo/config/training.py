"""Optimizer, devices, checkpoints, measurements, log."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from dinov2_zoo.config.auto import AUTO, AutoInt, AutoPair, at_least, is_auto
from dinov2_zoo.config.checks import check, nearest_multiples


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedules (paper, Table 16, students; "auto" follows the number of steps)."""

    steps: AutoInt = AUTO
    """Optimizer steps of the run (paper: 625,000). "auto": from `epochs` or `time`, or else 30 epochs, within 90 and
    50,000 steps and within an hour on a CPU, a day on GPUs (chosen here)."""
    warmup_steps: AutoInt = AUTO
    """Steps of linear warm-up from 0 (paper: 100,000). "auto": a twentieth of the steps and 30, at most a third."""
    base_lr: float = 7.07e-4
    """Peak learning rate at a global batch of 1024; the peak used is base_lr * sqrt(batch / 1024).
    (The paper's 1e-3 at 2048.)"""
    final_lr: float = 1e-6
    """Learning rate at the last step of the cosine (official)."""
    weight_decay: tuple[float, float] = (0.04, 0.2)
    """Weight decay, (first, last), cosine in between."""
    ema_momentum: AutoPair = AUTO
    """Momentum of the EMA, (first, last), cosine in between (official: 0.994, 1). "auto": the average reaches back
    over a tenth of the steps at first, at most as far as 0.994 does, and over all of them at the end."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW betas (official)."""
    clip_norm: float = 3.0
    """Gradient norm above which gradients are scaled down, for the backbone and each head apart (official)."""
    layer_decay: float = 1.0
    """Learning-rate factor per block counted from the end; 1 is off (official long configs)."""
    decay_tokens: bool = True
    """Weight decay also on tokens, positions and the lengths of prototypes (official); off spares them."""
    patch_embed_lr: float = 0.2
    """Learning-rate factor of the patch embedding (official)."""
    freeze_last_layer_steps: AutoInt = AUTO
    """Steps during which prototypes do not move. "auto": 1250 (official: one epoch), at most a twelfth of the run."""
    accumulate: int = 1
    """Micro-batches per optimizer step; loader.batch_size is split into them. They give what one large batch gives;
    where the loss looks at all images of a step (prototypes, class relations, neighbours) by a second forward pass."""
    max_bad_steps: int = 0
    """Steps whose loss or gradient is not finite that a run may leave out, without an update; one more ends it. Every
    one is recorded in bad_batches/ (chosen here: 0, look into the first)."""

    def __post_init__(self) -> None:
        check(at_least(self.steps, 1), "optim.steps must be at least 1.")
        check(at_least(self.warmup_steps, 0), "optim.warmup_steps must be 0 or more.")
        if not is_auto(self.steps) and not is_auto(self.warmup_steps):
            check(
                self.warmup_steps <= self.steps,
                f"optim.warmup_steps {self.warmup_steps} are more than optim.steps {self.steps}: use at most "
                f"{self.steps}, or auto.",
            )
        check(self.base_lr > 0, "optim.base_lr must be above 0.")
        check(self.accumulate >= 1, "optim.accumulate must be at least 1.")
        check(self.max_bad_steps >= 0, "optim.max_bad_steps must be 0 or more.")
        check(0 < self.layer_decay <= 1, "optim.layer_decay must be above 0 and at most 1.")
        check(
            is_auto(self.ema_momentum) or all(0 <= m <= 1 for m in self.ema_momentum),
            "optim.ema_momentum must lie between 0 and 1.",
        )

    def settled(self, steps: int | None = None) -> OptimConfig:
        """The same with everything that follows from the number of steps in numbers.

        Args:
            steps: Optimizer steps; default: those that are set.
        """
        steps = self.steps if steps is None else steps
        warmup, momentum, freeze = self.warmup_steps, self.ema_momentum, self.freeze_last_layer_steps
        return replace(
            self,
            steps=steps,
            warmup_steps=round(min(steps / 3, 30 + steps / 20)) if is_auto(warmup) else min(warmup, steps),
            ema_momentum=(min(0.994, max(0.9, 1 - 10 / steps)), 1 - 0.5 / steps) if is_auto(momentum) else momentum,
            freeze_last_layer_steps=min(1250, steps // 12) if is_auto(freeze) else freeze,
        )

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
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: a third more computation, a fraction of the memory."""
    deterministic: bool = False
    """Take only kernels that repeat their results bit for bit, on the same GPUs and versions; slower. Without it, runs
    on GPUs differ in the last digits. A CPU repeats itself anyway, at the same number of threads."""
    cpu: bool = False
    """Stay on the CPU even where there is a GPU."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Training checkpoints."""

    every: AutoInt = AUTO
    """Steps between checkpoints; the last step is always saved. 0: only the last. "auto": a tenth of the run, from 10
    to 1000 steps."""
    keep: int = 3
    """Newest checkpoints kept; older ones are removed."""
    keep_every: int = 0
    """Checkpoints of steps that are multiples of this are kept for good; 0: none."""
    background: bool = True
    """Write while training goes on: it waits only for a copy in memory. Off spares that copy."""
    allow_changes: bool = False
    """Resume although settings differ from those that the run was started with; the change is recorded."""

    def __post_init__(self) -> None:
        check(
            at_least(self.every, 0) and self.keep >= 1,
            "checkpoint.every must be 0 or more, checkpoint.keep at least 1.",
        )
        check(self.keep_every >= 0, "checkpoint.keep_every must be 0 or more.")


@dataclass(frozen=True)
class EvaluationConfig:
    """Measurements before, during and after training."""

    labelled: str | None = None
    """Source of labelled images for k-NN (folder per class, or a source that carries labels)."""
    size: AutoInt = AUTO
    """Side of the evaluated images, pixels, after resizing the short side and a centre crop. "auto": that of the global
    crops."""
    labelled_size: int | None = None
    """The same of the labelled images; default: `size`."""
    fit_images: AutoInt = AUTO
    """Training images, over all processes, that the first weights of a projector (distillation) or of heads on a frozen
    backbone are fitted on. "auto": 1024 on GPUs, 240 on a CPU (chosen here), fewer in a short `time`."""
    every: AutoInt = AUTO
    """Steps between evaluations during training; 0: only before and after. "auto": a tenth of a run of 1000 steps or
    more."""

    def __post_init__(self) -> None:
        check(
            at_least(self.size, 1) and at_least(self.every, 0), "evaluation.size must be at least 1, .every 0 or more."
        )
        check(at_least(self.fit_images, 1), "evaluation.fit_images must be at least 1.")

    def check_patch(self, patch: int) -> None:
        """Note it as a problem unless evaluated images divide into patches of `patch` pixels."""
        for name in ("size", "labelled_size"):
            size = getattr(self, name)
            check(
                size is None or is_auto(size) or size % patch == 0,
                f"evaluation.{name} {size} is not a multiple of the patch ({patch}): "
                f"use {nearest_multiples(patch if is_auto(size) or not size else size, patch)}.",
            )


@dataclass(frozen=True)
class AgreementConfig(EvaluationConfig):
    """The same, and how a student is compared with its teacher."""

    heldout: str | None = None
    """Source of images kept out of training, on which agreement with the teacher is measured. Default: the part that
    the training source itself keeps out, or else `heldout_count` images taken out of it."""
    heldout_count: AutoInt = AUTO
    """Images taken out of the training source when it keeps none out; 0 measures no agreement. "auto": an eighth of
    them, from 2 to 32."""
    pictures: int = 12
    """Held-out images shown in the report."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(at_least(self.heldout_count, 0) and self.pictures >= 0, "evaluation counts must be 0 or more.")


@dataclass(frozen=True)
class LogConfig:
    """What a run writes while it trains."""

    every: int = 10
    """Steps between lines of metrics.jsonl."""
    trackers: tuple[str, ...] = ()
    """Trackers that accelerate knows: tensorboard, wandb, trackio, ... (their package must be installed)."""
    progress: bool = True
    """Show a progress bar on the first process."""
