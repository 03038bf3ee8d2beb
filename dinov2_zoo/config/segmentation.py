"""How semantic segmentation is measured on frozen features."""

from __future__ import annotations

from dataclasses import dataclass

from dinov2_zoo.config.checks import check


@dataclass(frozen=True)
class SegmentationConfig:
    """Training and test of a linear segmentation head (paper 7.4; released configs)."""

    steps: int = 40_000
    """Optimizer steps (official)."""
    warmup_steps: int = 1500
    """Steps in which the rate rises from a millionth (official)."""
    lr: float = 1e-3
    """Peak learning rate of AdamW, which then falls linearly to 0 (official)."""
    weight_decay: float = 1e-4
    """Weight decay of AdamW (official)."""
    batch_size: int = 16
    """Images per step over all processes (official: 2 on each of 8)."""
    short_side: int | None = None
    """Images are scaled to this short side, pixels; none: 512 for linear, 640 for ms, or the data set's own."""
    crop: int | None = None
    """Side of training crops and of the test window, pixels; none: as short_side."""
    ratios: tuple[float, ...] = (1.0, 1.32, 1.73, 2.28, 3.0)
    """Scales of the test images that ms averages over, each with its mirror image (released notebook)."""
    test_batch: int = 8
    """Windows per forward pass; changes nothing but speed."""
    workers: int = 2
    """Processes that read and augment, per process that trains; 0: it does so itself."""
    save_every: int = 1000
    """Steps between saves of the head."""

    def __post_init__(self) -> None:
        check(self.steps >= 1 and self.batch_size >= 1, "segmentation.steps and batch_size must be at least 1.")
        check(0 <= self.warmup_steps <= self.steps, "segmentation.warmup_steps must lie between 0 and steps.")
        check(self.lr > 0, "segmentation.lr must be above 0.")
        check(bool(self.ratios) and min(self.ratios) > 0, "segmentation.ratios must hold numbers above 0.")
