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
    weights: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """Weighted sum over tokens and targets of -sum_k target_k log softmax_k(z . w / temperature). The reference.

    Args:
        bottleneck: The student's unit vectors z.
        prototypes: The student's prototypes w.
        targets: One or several teacher targets of each of the n tokens, row by row.
        temperature: The student's.
        weights: How much each token counts; None: 1.
    """
    log_p = torch.log_softmax(bottleneck @ prototypes.T / temperature, dim=1)
    if weights is not None:
        log_p = log_p * weights[:, None]
    return -sum((t.probabilities() * log_p).sum() for t in targets)  # pyright: ignore[reportReturnType]


def chunked_cross_entropy(
    bottleneck: Float[Tensor, "n d"],
    prototypes: Float[Tensor, "K d"],
    targets: Sequence[Targets],
    *,
    temperature: float,
    weights: Float[Tensor, " n"] | None = None,
    chunk: int = 4096,
) -> Float[Tensor, ""]:
    """`plain_cross_entropy`, loss and gradient in one pass over chunks of tokens.

    Peak memory is a few [chunk, K] matrices, whatever n. Gradients reach the student only.
    """
    loss: Tensor = _Chunked.apply(bottleneck, prototypes, tuple(targets), temperature, weights, chunk)  # pyright: ignore[reportAssignmentType]
    return loss


class _Chunked(torch.autograd.Function):
    """The gradient of a softmax cross-entropy is (weight * softmax - target) / T: all for it is at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        bottleneck: Tensor,
        prototypes: Tensor,
        targets: tuple[Targets, ...],
        temperature: float,
        weights: Tensor | None,
        chunk: int,
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
            scale = z.new_ones(len(z)) if weights is None else weights[rows]
            total -= torch.dot((target * log_p).sum(1), scale)
            d_logits = log_p.exp_().mul_(len(targets)).sub_(target).mul_(scale[:, None] / temperature)
            d_bottleneck[rows] = d_logits @ prototypes
            d_prototypes.addmm_(d_logits.T, z)
        ctx.save_for_backward(d_bottleneck, d_prototypes)
        return total

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        d_bottleneck, d_prototypes = ctx.saved_tensors
        return d_bottleneck * grad[0], d_prototypes * grad[0], None, None, None, None
