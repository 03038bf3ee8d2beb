"""Batch norm of frozen features, with the statistics of all processes: any number of them equals one.

torch's SyncBatchNorm wants CUDA. Here the input needs no gradient, so summing sums and squares is all there is to it.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.training.distributed import DistributedContext


class SyncedNorm(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of every process's batch.

    Args:
        channels: Of the input.
        context: The processes that share the batch.
    """

    def __init__(self, channels: int, context: DistributedContext) -> None:
        super().__init__(channels)
        self.context = context

    def forward(self, input: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """Normalised, then scaled and shifted; the input must not need a gradient."""
        if not self.training:
            return super().forward(input)
        assert not input.requires_grad, "the statistics carry no gradient"
        count = self.context.sum(torch.tensor(float(input.numel() / input.shape[1]), device=input.device))
        mean = self.context.sum(input.sum((0, 2, 3))) / count
        centred = input - mean[:, None, None]
        variance = self.context.sum(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            momentum = self.momentum or 0.0
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]
