"""How video object segmentation is measured on frozen features."""

from __future__ import annotations

from dataclasses import dataclass

from dinov2_zoo.config.checks import check


@dataclass(frozen=True)
class VideoConfig:
    """Propagation of the first frame's masks by token similarity (DINO v1's DAVIS protocol)."""

    short_side: int = 480
    """Frames are scaled to this short side, pixels, and both sides rounded down to multiples of the patch."""
    frames: int = 7
    """Previous frames that vote, besides the first (DINO v1)."""
    radius: int = 12
    """Tokens: a token is compared with those at most so far from its place, along each axis (DINO v1)."""
    neighbours: int = 5
    """Votes per token, over all frames together (DINO v1)."""
    temperature: float = 0.1
    """Temperature of the vote (DINO v1)."""

    def __post_init__(self) -> None:
        check(self.short_side >= 1, "video.short_side must be at least 1.")
        check(self.frames >= 0 and self.radius >= 0, "video.frames and video.radius must be 0 or more.")
        check(self.neighbours >= 1 and self.temperature > 0, "video.neighbours must be at least 1.")
