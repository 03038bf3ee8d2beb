"""KoLeo: push every image away from its nearest neighbour, so that they spread evenly (Sablayrolles et al. 2019)."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def koleo_loss(class_tokens: Float[Tensor, "B D"], eps: float = 1e-8) -> Float[Tensor, ""]:
    """Mean of -log distance to the nearest other image, on the unit sphere, over the images of all processes.

    The official code looks for neighbours on each GPU alone, which makes the loss depend on the number of GPUs. Here
    they are gathered, so that many processes equal one with the same global batch.

    Args:
        class_tokens: The backbone's, of one view, before any head.
        eps: Guards the norm, the distance and the logarithm (official).
    """
    unit = F.normalize(class_tokens, dim=1, eps=eps)
    everyone = gather_with_gradient(unit)
    with torch.no_grad():
        cosine = unit @ everyone.T
        first = dist.get_rank() * len(unit) if dist.is_initialized() else 0
        cosine.diagonal(first).fill_(-1)
        nearest = cosine.argmax(1)
    return -torch.log(F.pairwise_distance(unit, everyone[nearest], eps=eps) + eps).mean()


def gather_with_gradient(rows: Float[Tensor, "B D"]) -> Float[Tensor, "everyone D"]:
    """Rows of all processes, in rank order; gradients flow back to the process that each row came from."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)  # pyright: ignore[reportAssignmentType]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        total = grad[0].contiguous()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
