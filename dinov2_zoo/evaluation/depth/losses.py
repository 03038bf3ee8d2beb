"""What depth heads are trained by: the scale-invariant log loss, and gradient matching (Eigen 2014, official)."""

import torch
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-3  # metres, within the logarithm (official)
STRIDES = (1, 2, 4, 6)
"""Distances of the pixels whose differences gradient matching looks at (released code)."""


def log_error(found: Tensor, truth: Tensor) -> Tensor:
    """log(found) - log(truth), per pixel."""
    return torch.log(found + EPSILON) - torch.log(truth + EPSILON)


def sig_loss(
    found: Float[Tensor, "B H W"], truth: Float[Tensor, "B H W"], max_depth: float, *, mean_only: bool = False
) -> Float[Tensor, ""]:
    """sqrt(var(g) + 0.15 mean(g)^2), with g the log error of all known pixels of a process's part of the batch.

    A constant factor between the two costs sqrt(0.15) |log factor|; with `mean_only` that is all that counts.

    Args:
        found: Metres, above 0.
        truth: Metres; 0 where unknown.
        max_depth: Farther pixels do not count.
        mean_only: For the first steps of a training.
    """
    known = (truth > 0) & (truth <= max_depth)
    error = log_error(found[known], truth[known])
    if error.numel() < 2:
        return (found * 0).sum()  # nothing is known of this batch; the graph stays whole
    mean = 0.15 * error.mean() ** 2
    return torch.sqrt(mean if mean_only else error.var() + mean)


def gradient_loss(found: Float[Tensor, "B H W"], truth: Float[Tensor, "B H W"], max_depth: float) -> Float[Tensor, ""]:
    """Mean difference of the log error between pixels some strides apart, where both are known, down and across.

    The released loss takes these differences over batch and channels instead of height and width: with two images per
    GPU it is 0, so the published heads were trained without it. This one looks at the image; its weight is 0 unless
    asked for.
    """
    known = (truth > 0) & (truth <= max_depth)
    error = torch.where(known, log_error(found, truth.clamp(min=EPSILON)), 0)
    total, count = error.new_zeros(()), 0
    for stride in STRIDES:
        for near, far in (
            ((slice(None), slice(stride, None)), (slice(None), slice(None, -stride))),
            ((slice(None), slice(None), slice(stride, None)), (slice(None), slice(None), slice(None, -stride))),
        ):
            both = known[near] & known[far]
            if both.any():
                total, count = total + (error[near] - error[far]).abs()[both].mean(), count + 1
    return total / max(count, 1)
