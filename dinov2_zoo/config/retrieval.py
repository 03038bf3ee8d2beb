"""How image retrieval is measured on frozen features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dinov2_zoo.config.checks import check


@dataclass(frozen=True)
class RetrievalConfig:
    """Ranking by cosine of class tokens (paper 7.3, which states neither size nor feature)."""

    size: int = 224
    """Side of the crop, or longest side, pixels (DINO v1's script: 224)."""
    resize: Literal["crop", "long_side"] = "long_side"
    """"crop": as for classification. "long_side": the whole image, both sides rounded to multiples of the patch (DINO
    v1's script keeps the ratio, too)."""
    scales: tuple[float, ...] = (1.0,)
    """Scales whose normalised features are averaged; (1, 0.7071, 0.5) is DINO v1's multi-scale variant."""
    crop_queries: bool = True
    """Cut queries to their annotated box, where there is one (revisited protocol; DINO v1's script does not)."""
    batch_size: int = 64
    """Images per forward pass and process with resize "crop"; otherwise one at a time."""
    workers: int = 4
    """Processes that decode, per process that measures; 0: it decodes itself."""

    def __post_init__(self) -> None:
        check(self.size >= 1 and self.batch_size >= 1, "retrieval.size and batch_size must be at least 1.")
        check(bool(self.scales) and min(self.scales) > 0, "retrieval.scales must hold numbers above 0.")
        check(self.resize == "long_side" or self.scales == (1.0,), "retrieval.scales need resize long_side.")
