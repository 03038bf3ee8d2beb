"""How depth is measured on frozen features."""

from __future__ import annotations

from dataclasses import dataclass

from dinov2_zoo.config.checks import check


@dataclass(frozen=True)
class DepthConfig:
    """Training and test of a depth head (released configs of the official heads; one recipe for all heads)."""

    steps: int = 38_400
    """Optimizer steps (official)."""
    warmup: float = 1 / 3
    """Share of the steps in which the rate rises from a thousandth (official: 12,800 steps)."""
    lr: float = 1e-4
    """Peak learning rate of AdamW (official)."""
    weight_decay: float = 0.01
    """Weight decay of AdamW (official)."""
    batch_size: int = 16
    """Images per step over all processes (official: 2 on each of 8)."""
    clip_norm: float = 35.0
    """Gradient norm above which gradients are scaled down (official)."""
    crop: tuple[int, int] | None = None
    """Height and width of training crops, pixels; none: the data set's own."""
    mean_only_steps: int = 100
    """First steps, in which only the mean error counts (official)."""
    gradient_weight: float = 0.0
    """Weight of the gradient-matching loss (official: 0.5, but in a form that was always 0: see `depth/losses.py`)."""
    flip_test: bool = True
    """Average over the image and its mirror image (official)."""
    reference: bool = False
    """Stretch the padded prediction over the image, as the released code does, instead of cutting the padding off: up
    to 13 pixels of shift, and official heads were measured with it."""
    weights: str | None = None
    """An official head's .pth file: it is measured as it is, nothing is trained. Bins span the data set's range; Meta's
    hub code takes 0.001 to 80 m for every linear head, against its own configs (10 m for NYU)."""
    workers: int = 2
    """Processes that read and augment, per process that trains; 0: it does so itself."""
    save_every: int = 1000
    """Steps between saves of the head."""

    def __post_init__(self) -> None:
        check(self.steps >= 1 and self.batch_size >= 1, "depth.steps and depth.batch_size must be at least 1.")
        check(0 <= self.warmup < 1, "depth.warmup must be at least 0 and below 1.")
        check(self.lr > 0 and self.clip_norm > 0, "depth.lr and depth.clip_norm must be above 0.")
        check(self.gradient_weight >= 0, "depth.gradient_weight must be 0 or more.")
