"""Linear depth heads lin.1 and lin.4: one 1x1 convolution to depth bins (paper 7.4; AdaBins' "linear" normalisation).

The protocol enlarges the tokens four times, then convolves. A 1x1 convolution and bilinear enlargement commute, for the
weights of the enlargement sum to 1; so the convolution runs on the tokens, and only its 256 results are enlarged. The
class token, the same at every place, is one vector per image.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.evaluation.encoders.encoder import Layer

ENLARGED = 4
"""Times the token grid (official)."""
FLOOR = 0.1
"""Added to each bin's score, so that none is impossible (official)."""


class BinsHead(nn.Module):
    """Depth as the expectation over uniform bins.

    Args:
        dim: Width of the tokens.
        layers: Blocks that are read, 1 or 4.
        min_depth: Of the first bin, metres.
        max_depth: Of the last bin, metres.
        bins: Their number (official: 256).
    """

    centres: Tensor

    def __init__(self, dim: int, layers: int, min_depth: float, max_depth: float, bins: int = 256) -> None:
        super().__init__()
        self.dim = dim
        # Channels: of each layer the patch token, then the class token (official order).
        self.conv_depth = nn.Conv2d(2 * dim * layers, bins, 1)
        self.register_buffer("centres", torch.linspace(min_depth, max_depth, bins), persistent=False)

    def forward(self, layers: list[Layer]) -> Float[Tensor, "B 1 4h 4w"]:
        """Depth in metres at four times the token grid."""
        weight = self.conv_depth.weight.unflatten(1, (len(layers), 2, self.dim))
        patches = torch.cat([layer.patches for layer in layers], 1)
        class_tokens = torch.cat([layer.class_token for layer in layers], 1)
        scores = F.conv2d(patches, weight[:, :, 0].flatten(1, 2))
        scores = (
            scores
            + F.linear(class_tokens, weight[:, :, 1].flatten(1).squeeze(-1), self.conv_depth.bias)[:, :, None, None]
        )
        return self._expectation(_enlarge(scores))

    def naive(self, layers: list[Layer]) -> Float[Tensor, "B 1 4h 4w"]:
        """The same in the order of the protocol: enlarge, then convolve."""
        channels = [
            torch.cat([layer.patches, layer.class_token[:, :, None, None].expand_as(layer.patches)], 1)
            for layer in layers
        ]
        return self._expectation(self.conv_depth(torch.cat([_enlarge(part) for part in channels], 1)))

    def _expectation(self, scores: Float[Tensor, "B K H W"]) -> Float[Tensor, "B 1 H W"]:
        share = scores.relu() + FLOOR
        return torch.einsum("bkhw,k->bhw", share, self.centres)[:, None] / share.sum(1, keepdim=True)


def _enlarge(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=ENLARGED, mode="bilinear", align_corners=False)
