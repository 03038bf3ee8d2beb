"""Augmentation and loading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dinov2_zoo.config.auto import AUTO, AutoInt, at_least
from dinov2_zoo.config.checks import check, nearest_multiples


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
    mix: float = 0.0
    """Probability that a crop is mixed with the same crop of another image: blended (mixup) or covered by a square of
    it (CutMix), with equal odds, by a share drawn from 0..1. For a frozen teacher, which says of mixtures, too, what it
    sees: it makes more of few images (`data/mixing.py`)."""

    def __post_init__(self) -> None:
        check(self.local_count >= 0, "local_count must be 0 or more.")
        check(0 <= self.mix <= 1, "crops.mix must lie between 0 and 1.")
        for name in ("global_scale", "local_scale", "aspect_ratio"):
            low, high = getattr(self, name)
            check(0 < low <= high, f"{name} must be (least, most) with 0 < least <= most, not ({low}, {high}).")
        check(self.global_scale[1] <= 1 and self.local_scale[1] <= 1, "crop scales are shares of the area: at most 1.")
        for name in ("flip", "jitter", "grayscale", "solarize"):
            check(0 <= getattr(self, name) <= 1, f"{name} is a probability: use 0 to 1.")

    def check_patch(self, patch: int) -> None:
        """Raise ConfigError unless both crop sizes are multiples of `patch` pixels."""
        for name in ("global_size", "local_size"):
            size = getattr(self, name)
            check(
                size % patch == 0,
                f"crops.{name} {size} is not a multiple of the patch ({patch}): use {nearest_multiples(size, patch)}.",
            )


@dataclass(frozen=True)
class FinishConfig:
    """The finishing stage: the last steps see images of several sizes (EUPE, 2026: the last 20 % of its steps)."""

    share: float = 0.0
    """Share of the steps, the last ones; 0: no such stage (EUPE: 0.2)."""
    sizes: tuple[int, ...] | None = None
    """Sides of the global crops, pixels: student and teacher each draw one of them for every step (EUPE: 256, 384,
    512). Default: 1, 1.5 and 2 times crops.global_size."""

    def __post_init__(self) -> None:
        check(0 <= self.share <= 1, "finish.share is a share of the steps: use 0 to 1.")
        check(
            self.sizes is None or (len(self.sizes) > 0 and min(self.sizes) >= 1),
            "finish.sizes must be sides in pixels, such as [224, 336, 448]; leave it out for the default.",
        )

    def sides(self, global_size: int, patch: int) -> tuple[int, ...]:
        """The sizes, or the default ones to the nearest multiple of the patch."""
        return self.sizes or tuple(round(scale * global_size / patch) * patch for scale in (1, 1.5, 2))

    def check_patch(self, patch: int) -> None:
        """Raise ConfigError unless the sizes are multiples of `patch` pixels."""
        for size in self.sizes or ():
            check(
                size % patch == 0,
                f"finish.sizes {size} is not a multiple of the patch ({patch}): use {nearest_multiples(size, patch)}.",
            )


@dataclass(frozen=True)
class LoaderConfig:
    """How images are read and batched."""

    batch_size: AutoInt = AUTO
    """Images per optimizer step, over all processes and accumulation steps. "auto": as many as there are images and
    memory for, up to 256 for each GPU and 32 on a CPU (chosen here; paper, Table 16: 2048 for students)."""
    workers: AutoInt = AUTO
    """Decoding processes per training process; 0 decodes in the training process. "auto": from the free cores."""
    prefetch: int = 2
    """Batches that each decoding process makes ahead (torch's default). Each takes 0.53 MB of shared memory (/dev/shm)
    for an image of two crops of 224 pixels and eight of 98. One more waits on the GPU."""
    colours: Literal["auto", "workers", "device"] = "auto"
    """Who does colour jitter, grayscale, blur and solarise: the decoding processes, or the device a batch at a time,
    which leaves the processes a third of their work or less. "auto": a GPU does, a CPU does not; mixed crops
    (crops.mix) always get their colours from the processes. The pixels are the same to one level of 255."""
    max_bad_share: float = 0.01
    """Stop when more than this share of the files cannot be decoded (chosen here: a few bad files are usual)."""

    def __post_init__(self) -> None:
        check(at_least(self.batch_size, 1), "loader.batch_size must be at least 1.")
        check(at_least(self.workers, 0), "loader.workers must be 0 or more.")
        check(self.prefetch >= 1, "loader.prefetch must be at least 1.")
        check(0 <= self.max_bad_share <= 1, "loader.max_bad_share is a share: use 0 to 1.")

    def colours_by(self, device: str, crops: CropConfig) -> Literal["workers", "device"]:
        """`colours`, settled for a device, "cuda" or "cpu"."""
        by_device = self.colours == "device" or (self.colours == "auto" and device == "cuda")
        return "device" if by_device and not crops.mix else "workers"


@dataclass(frozen=True)
class MaskConfig:
    """Patches hidden from the student in pretraining (official `masking.py`, `collate.py`)."""

    share: float = 0.5
    """Share of the global crops that get a mask."""
    ratios: tuple[float, float] = (0.1, 0.5)
    """Share of a masked crop's patches that is hidden, (least, most); stratified over the batch."""
    smallest_block: int = 4
    """Patches of the smallest block."""
    aspect: float = 0.3
    """Least height over width of a block; the most is its inverse."""
    exact: bool = False
    """Complete each mask with single patches to the exact count (DINOv3) instead of letting it fall short."""

    def __post_init__(self) -> None:
        low, high = self.ratios
        check(0 < self.share <= 1, "masks.share must be above 0 and at most 1.")
        check(0 < low <= high <= 1, f"masks.ratios must be (least, most) with 0 < least <= most <= 1, not {low, high}.")
        check(self.smallest_block >= 1, "masks.smallest_block must be at least 1.")
        check(0 < self.aspect <= 1, "masks.aspect must be above 0 and at most 1.")
