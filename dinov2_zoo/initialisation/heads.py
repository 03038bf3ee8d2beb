"""Heads that begin by seeing a frozen backbone's tokens standardised.

A trained backbone's tokens share a large mean, and their channels differ in scale by orders of magnitude. Freshly drawn
heads would map all of them to nearly one direction and take long to tell them apart.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.data.batch import Batch
from dinov2_zoo.initialisation.ridge import sum_over_processes
from dinov2_zoo.objectives.self_distillation import SelfDistillation


class ChannelMoments:
    """Running count, sum and sum of squares of tokens, per channel, in float64."""

    def __init__(self, dim: int, device: torch.device) -> None:
        self.sums = torch.zeros(3, dim, dtype=torch.float64, device=device)

    def add(self, tokens: Float[Tensor, "*some D"]) -> None:
        """Add some tokens."""
        rows = tokens.flatten(0, -2).double()
        self.sums += torch.stack([torch.full_like(rows[0], len(rows)), rows.sum(0), rows.square().sum(0)])

    def solve(self) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
        """Mean and deviation over the tokens of all processes, float64."""
        count, total, squares = sum_over_processes(self.sums.clone())
        mean = total / count
        return mean, (squares / count - mean.square()).clamp(min=1e-12).sqrt()


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
        module: Student and average alike get the result. A tied head gets the statistics of all its tokens together.
        batches: This process's share of some training images.
        device: Where the module is.
        autocast: Precision of the forward passes.
    """
    dim = module.ema.backbone.embed_dim
    of_class = ChannelMoments(dim, device)
    of_patches = of_class if module.ema.tied else ChannelMoments(dim, device)
    for batch in batches:
        with autocast():
            output = module.ema([batch.global_crops.to(device)], positions=torch.arange(0, device=device))[0]
        of_class.add(output.tokens.class_token)
        of_patches.add(output.tokens.patches)
    for number, moments in enumerate([of_class] if module.ema.tied else [of_class, of_patches]):
        mean, deviation = moments.solve()
        for branch in (module.student, module.ema):
            head = branch.heads[number]
            assert head is not None
            first = head.mlp[0]
            assert isinstance(first, nn.Linear)
            weight = first.weight.double() / deviation
            first.bias.copy_(first.bias - weight @ mean)
            first.weight.copy_(weight)
