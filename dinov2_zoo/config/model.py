"""Shape of a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dinov2_zoo.config.checks import check, nearest_multiples


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
        check(
            self.embed_dim % self.num_heads == 0,
            f"embed_dim {self.embed_dim} does not divide into {self.num_heads} heads: "
            "choose num_heads that divides embed_dim.",
        )
        check(
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
