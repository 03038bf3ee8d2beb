"""Depth metrics: of each image over its known pixels, then the mean over images (Eigen 2014)."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Mask = Literal["eigen", "garg", "none"]


def evaluated_pixels(height: int, width: int, mask: Mask) -> Bool[Tensor, "{height} {width}"]:
    """Which part of an image is judged.

    Args:
        height: Of the image, pixels.
        width: Of the image, pixels.
        mask: "eigen": rows 45 to 471 and columns 41 to 601 of NYU's 480 x 640; "garg": shares of the height and width
            (KITTI); "none": everything.
    """
    pixels = torch.zeros(height, width, dtype=torch.bool)
    if mask == "eigen":
        pixels[45:471, 41:601] = True
    elif mask == "garg":
        top, bottom = int(0.40810811 * height), int(0.99189189 * height)
        pixels[top:bottom, int(0.03594771 * width) : int(0.96405229 * width)] = True
    else:
        pixels[:] = True
    return pixels


def depth_metrics(
    found: Float[Tensor, "H W"], truth: Float[Tensor, "H W"], min_depth: float, max_depth: float, mask: Mask
) -> dict[str, float]:
    """Metrics of one image; nan where it has no known pixel.

    Args:
        found: Metres; cut to the range, and what is not finite becomes its end.
        truth: Metres; pixels outside the range are unknown.
        min_depth: Metres.
        max_depth: Metres.
        mask: Part of the image that is judged.

    Returns:
        a1, a2, a3 (share of pixels within a factor of 1.25, 1.25^2, 1.25^3), abs_rel, sq_rel, rmse (metres), rmse_log,
        log10, silog (times 100).
    """
    known = (
        (truth > min_depth)
        & (truth < max_depth)
        & evaluated_pixels(truth.shape[0], truth.shape[1], mask).to(truth.device)
    )
    y = truth[known].double()
    x = torch.nan_to_num(found[known].double(), nan=min_depth, posinf=max_depth, neginf=min_depth)
    x = x.clamp(min_depth, max_depth)
    factor = torch.maximum(x / y, y / x)
    logarithm = x.log() - y.log()
    metrics = {f"a{power}": (factor < 1.25**power).double().mean() for power in (1, 2, 3)}
    metrics |= {
        "abs_rel": ((x - y).abs() / y).mean(),
        "sq_rel": ((x - y) ** 2 / y).mean(),
        "rmse": ((x - y) ** 2).mean().sqrt(),
        "rmse_log": (logarithm**2).mean().sqrt(),
        "log10": (x.log10() - y.log10()).abs().mean(),
        # Rounding may take the variance below 0.
        "silog": 100 * ((logarithm**2).mean() - logarithm.mean() ** 2).clamp(min=0).sqrt(),
    }
    return {name: value.item() for name, value in metrics.items()}


def mean_over_images(images: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over the images that have it: rmse is a mean of rmses, not that of all pixels together."""
    found: dict[str, float] = {}
    for name in images[0]:
        values = [image[name] for image in images if not math.isnan(image[name])]
        found[name] = sum(values) / len(values) if values else math.nan
    return found
