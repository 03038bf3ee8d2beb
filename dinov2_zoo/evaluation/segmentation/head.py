"""The linear segmentation head: batch norm and a 1x1 convolution on patch tokens (paper 7.4; released heads)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.data.augment import seeded
from dinov2_zoo.evaluation.dense.synced_norm import SyncedNorm
from dinov2_zoo.training.distributed import DistributedContext


class LinearHead(nn.Module):
    """Scores of each class at each token.

    Args:
        channels: Of the tokens; four blocks' side by side for "+ms".
        classes: Their number.
        context: The processes whose batches the norm's statistics are of.
    """

    def __init__(self, channels: int, classes: int, context: DistributedContext) -> None:
        super().__init__()
        self.norm = SyncedNorm(channels, context)
        self.conv = nn.Conv2d(channels, classes, 1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, tokens: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K h w"]:
        """Logits at the resolution of the tokens."""
        return self.conv(self.norm(tokens)) if self.training else self._folded(tokens)

    def _folded(self, tokens: Tensor) -> Tensor:
        """At test time the norm is a scale and a shift of each channel, and goes into the convolution."""
        assert self.norm.running_mean is not None and self.norm.running_var is not None and self.conv.bias is not None
        scale = self.norm.weight * (self.norm.running_var + self.norm.eps).rsqrt()
        shift = self.norm.bias - self.norm.running_mean * scale
        weight = self.conv.weight * scale[None, :, None, None]
        return F.conv2d(tokens, weight, self.conv.bias + self.conv.weight.flatten(1) @ shift)


def linear_head(channels: int, classes: int, context: DistributedContext) -> LinearHead:
    """An untrained head; the same weights each time."""
    with seeded(0):
        return LinearHead(channels, classes, context)
