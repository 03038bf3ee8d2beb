"""Cross-entropy between a student's prototype logits and targets, plain and in chunks.

Cross-entropy is linear in its target, so a student token that is matched with several teacher tokens meets the sum of
their distributions in one product.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.objectives.targets import Targets


def plain_cross_entropy(
    bottleneck: Float[Tensor, "n d"],
    prototypes: Float[Tensor, "K d"],
    targets: Sequence[Targets],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Sum over tokens and targets of -sum_k target_k log softmax_k(z . w / temperature). The reference.

    Args:
        bottleneck: The student's unit vectors z.
        prototypes: The student's prototypes w.
        targets: One or several teacher opinions of each of the n tokens, row by row.
        temperature: The student's.
    """
    log_p = torch.log_softmax(bottleneck @ prototypes.T / temperature, dim=1)
    return -sum((t.probabilities() * log_p).sum() for t in targets)  # pyright: ignore[reportReturnType]


def chunked_cross_entropy(
    bottleneck: Float[Tensor, "n d"],
    prototypes: Float[Tensor, "K d"],
    targets: Sequence[Targets],
    *,
    temperature: float,
    chunk: int = 4096,
) -> Float[Tensor, ""]:
    """`plain_cross_entropy`, loss and gradient in one pass over chunks of tokens.

    Peak memory is a few [chunk, K] matrices, whatever n. Gradients reach the student only.
    """
    loss: Tensor = _Chunked.apply(bottleneck, prototypes, tuple(targets), temperature, chunk)  # pyright: ignore[reportAssignmentType]
    return loss


class _Chunked(torch.autograd.Function):
    """The gradient of a softmax cross-entropy is (weight * softmax - target) / T: all for it is at hand."""

    @staticmethod
    def forward(
        ctx: Any, bottleneck: Tensor, prototypes: Tensor, targets: tuple[Targets, ...], temperature: float, chunk: int
    ) -> Tensor:
        total = bottleneck.new_zeros(())
        d_bottleneck = torch.empty_like(bottleneck)
        d_prototypes = torch.zeros_like(prototypes)
        for start in range(0, len(bottleneck), chunk):
            rows = slice(start, start + chunk)
            z = bottleneck[rows]
            log_p = torch.log_softmax(z @ prototypes.T / temperature, dim=1)
            target = targets[0].probabilities(rows)
            for more in targets[1:]:
                target += more.probabilities(rows)
            total -= torch.dot(target.flatten(), log_p.flatten())
            d_logits = log_p.exp_().mul_(len(targets)).sub_(target).div_(temperature)
            d_bottleneck[rows] = d_logits @ prototypes
            d_prototypes.addmm_(d_logits.T, z)
        ctx.save_for_backward(d_bottleneck, d_prototypes)
        return total

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        d_bottleneck, d_prototypes = ctx.saved_tensors
        return d_bottleneck * grad[0], d_prototypes * grad[0], None, None, None
