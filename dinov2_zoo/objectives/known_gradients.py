"""A loss that computes its gradients along with itself, so that nothing of its size is kept for the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Computed = tuple[Tensor, Tensor, Tensor]
"""A scalar loss, and its gradients with respect to two tensors."""


def with_known_gradients(compute: Callable[[Tensor, Tensor], Computed], first: Tensor, second: Tensor) -> Tensor:
    """The loss of two tensors, differentiable once.

    Args:
        compute: The loss and both gradients; called at once, without a graph.
        first: What it is given.
        second: And this.
    """
    loss: Tensor = _Known.apply(first, second, compute)  # pyright: ignore[reportAssignmentType]
    return loss


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, compute: Callable[[Tensor, Tensor], Computed]) -> Tensor:
        loss, *gradients = compute(first, second)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        d_first, d_second = ctx.saved_tensors
        return d_first * grad[0], d_second * grad[0], None
