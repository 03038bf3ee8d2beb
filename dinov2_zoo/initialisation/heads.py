"""Heads that begin by seeing a frozen backbone's tokens standardised.

A trained backbone's tokens share a large mean, and their channels differ in scale by orders of magnitude. Freshly drawn
heads would map all of them to nearly one direction and take long to tell them apart.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dinov2_zoo.data.batch import Batch
from dinov2_zoo.objectives.self_distillation import SelfDistillation


@torch.no_grad()
def standardise_heads(
    module: SelfDistillation,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Fold (token - mean) / deviation into each head's first layer, before sharding. Every process must call it.

    Args:
        module: Student and average alike get the result.
        batches: This process's share of some training images.
        device: Where the module is.
        autocast: Precision of the forward passes.
    """
    tokens: dict[str, list[Tensor]] = {"class": [], "patches": []}
    for batch in batches:
        with autocast():
            output = module.ema([batch.global_crops.to(device)], positions=torch.arange(0, device=device))[0]
        for name, found in tokens.items():
            found.append(output[name].double().flatten(0, -2))
    for head, name in enumerate(tokens):
        values = torch.cat(tokens[name])
        sums = torch.stack([torch.full_like(values[0], len(values)), values.sum(0), values.square().sum(0)])
        if dist.is_initialized():
            dist.all_reduce(sums)
        mean = sums[1] / sums[0]
        deviation = (sums[2] / sums[0] - mean.square()).clamp(min=1e-12).sqrt()
        for branch in (module.student, module.ema):
            projection = branch.heads[head]
            assert projection is not None
            first = projection.mlp[0]
            assert isinstance(first, nn.Linear)
            weight = first.weight.double() / deviation
            first.bias.copy_(first.bias - weight @ mean)
            first.weight.copy_(weight)
