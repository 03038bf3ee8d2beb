"""The DPT decoder: four blocks' tokens become a pyramid, fused from coarse to fine (Ranftl 2021; official head)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.evaluation.encoders.encoder import Layer

CHANNELS = 256
"""Channels of the fused maps (official)."""


class Reassemble(nn.Module):
    """Tokens of one block as a map of the pyramid: class token read out, channels reduced, resized.

    Args:
        dim: Width of the tokens.
        channels: Of the map.
        level: 0 to 3: four times, twice, once, half the token grid.
    """

    def __init__(self, dim: int, channels: int, level: int) -> None:
        super().__init__()
        self.readout = nn.Linear(2 * dim, dim)
        self.project = nn.Conv2d(dim, channels, 1)
        self.resize: nn.Module = (
            nn.ConvTranspose2d(channels, channels, 4, 4),
            nn.ConvTranspose2d(channels, channels, 2, 2),
            nn.Identity(),
            nn.Conv2d(channels, channels, 3, 2, 1),
        )[level]
        self.smooth = nn.Conv2d(channels, CHANNELS, 3, padding=1, bias=False)

    def forward(self, layer: Layer) -> Float[Tensor, "B 256 h2 w2"]:
        """The map of this level."""
        patches = layer.patches.permute(0, 2, 3, 1)
        class_token = layer.class_token[:, None, None].expand_as(patches)
        read = F.gelu(self.readout(torch.cat([patches, class_token], 3))).permute(0, 3, 1, 2)
        return self.smooth(self.resize(self.project(read)))


class Residual(nn.Module):
    """Two 3x3 convolutions, each after a ReLU, added to what came in; no norm (official)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)

    def forward(self, x: Float[Tensor, "B 256 h w"]) -> Float[Tensor, "B 256 h w"]:
        """The input plus its correction."""
        return x + self.second(self.first(x.relu()).relu())


class Fusion(nn.Module):
    """Adds a level of the pyramid to what is fused so far, and doubles the size.

    Args:
        has_level: False for the coarsest level, which begins.
    """

    def __init__(self, has_level: bool) -> None:
        super().__init__()
        self.level = Residual() if has_level else None
        self.merged = Residual()
        self.project = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Float[Tensor, "B 256 h w"], level: Tensor | None = None) -> Float[Tensor, "B 256 2h 2w"]:
        """The fused map at twice the size."""
        if self.level is not None and level is not None:
            # Odd grids: the halved level does not double back to the size of the next.
            if level.shape != x.shape:
                level = F.interpolate(level, x.shape[2:], mode="bilinear", align_corners=False)
            x = x + self.level(level)
        large = F.interpolate(self.merged(x), scale_factor=2, mode="bilinear", align_corners=True)
        return self.project(large)


class DptHead(nn.Module):
    """Depth by regression.

    Args:
        dim: Width of the tokens.
        min_depth: Smallest depth, metres: it is added to what the head finds.
    """

    def __init__(self, dim: int, min_depth: float) -> None:
        super().__init__()
        self.min_depth = min_depth
        self.reassemble = nn.ModuleList(Reassemble(dim, dim // 8 * 2**level, level) for level in range(4))
        self.fusion = nn.ModuleList(Fusion(number > 0) for number in range(4))
        self.project = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.narrow = nn.Conv2d(CHANNELS, CHANNELS // 2, 3, padding=1)
        self.thin = nn.Conv2d(CHANNELS // 2, 32, 3, padding=1)
        self.depth = nn.Conv2d(32, 1, 1)
        # Begin near 1 m everywhere. As torch draws it, the depth of some backbones begins below 0 at every pixel, where
        # the last ReLU passes no gradient, and never moves (chosen here; seen with a ViT-S).
        with torch.no_grad():
            self.depth.weight.mul_(0.01)
            self.depth.bias.fill_(1.0)  # pyright: ignore[reportOptionalMemberAccess]

    def forward(self, layers: list[Layer]) -> Float[Tensor, "B 1 16h 16w"]:
        """Depth in metres at sixteen times the token grid (grids of even sides; odd ones come out a little larger)."""
        levels = [block(layer) for block, layer in zip(self.reassemble, layers, strict=True)]
        x = self.fusion[0](levels[3])
        for block, level in zip(list(self.fusion)[1:], reversed(levels[:3]), strict=True):
            x = block(x, level)
        x = F.interpolate(self.narrow(self.project(x).relu()), scale_factor=2, mode="bilinear", align_corners=True)
        return self.depth(self.thin(x).relu()).relu() + self.min_depth
