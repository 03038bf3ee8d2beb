"""Norms and clipping of gradients, for the backbone and each head apart, sharded or not."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from dinov2_zoo.training.ema import local_shards


def gradients_by_part(branch: nn.Module) -> dict[str, list[Tensor]]:
    """This process's gradients of each child of a branch ("backbone", "dino", ...), children without any left out."""
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in branch.named_parameters():
        if parameter.grad is not None:
            parts.setdefault(name.split(".")[0], []).append(parameter.grad)
    return {name: local_shards(gradients) for name, gradients in parts.items()}


def squared_norms(parts: Mapping[str, list[Tensor]]) -> Tensor:
    """This process's share of each part's squared gradient norm, float64 [parts]; sum it over sharded processes."""
    return torch.stack([get_total_norm(g, foreach=True).double().square() for g in parts.values()])


def clip(parts: Mapping[str, list[Tensor]], norms: Tensor, limit: float) -> None:
    """Scale the gradients of each part whose norm exceeds `limit` down to it; in place, without waiting for the device.

    Args:
        parts: As from `gradients_by_part`.
        norms: Norm of each part over all processes, [parts].
        limit: Largest norm left alone, above 0.
    """
    for gradients, scale in zip(parts.values(), (limit / (norms + 1e-6)).clamp(max=1), strict=True):
        torch._foreach_mul_(gradients, scale.to(gradients[0].dtype))  # pyright: ignore[reportPrivateUsage]
