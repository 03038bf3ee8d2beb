"""How well masks of a video fit: region overlap J and boundary F (Perazzi 2016, DAVIS)."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64
from torch import Tensor

TOLERANCE = 0.008
"""How far off a boundary may be, as a share of the image's diagonal (DAVIS)."""


def region(found: Bool[Tensor, "H W"], truth: Bool[Tensor, "H W"]) -> float:
    """J: intersection over union, 0..1; 1 where both are empty."""
    union = (found | truth).sum().item()
    return (found & truth).sum().item() / union if union else 1.0


def boundary(found: Bool[Tensor, "H W"], truth: Bool[Tensor, "H W"]) -> float:
    """F: harmonic mean of the boundaries' precision and recall, 0..1, each up to the tolerance."""
    radius = math.ceil(TOLERANCE * math.hypot(*found.shape))
    ours, theirs = edges(found), edges(truth)
    if not ours.any() and not theirs.any():
        return 1.0
    if not ours.any() or not theirs.any():
        return 0.0
    precision = (ours & _thick(theirs, radius)).sum().item() / ours.sum().item()
    recall = (theirs & _thick(ours, radius)).sum().item() / theirs.sum().item()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def edges(mask: Bool[Tensor, "H W"]) -> Bool[Tensor, "H W"]:
    """Pixels whose right, lower or lower right neighbour lies on the other side (DAVIS)."""
    grown = F.pad(mask[None].float(), (0, 1, 0, 1), mode="replicate")[0].bool()
    here = grown[:-1, :-1]
    return (here ^ grown[:-1, 1:]) | (here ^ grown[1:, :-1]) | (here ^ grown[1:, 1:])


def _thick(lines: Bool[Tensor, "H W"], radius: int) -> Bool[Tensor, "H W"]:
    """Everything within `radius` pixels, by a disk."""
    offsets = torch.arange(-radius, radius + 1)
    disk = (offsets[:, None] ** 2 + offsets[None] ** 2 <= radius**2).float()
    return F.conv2d(lines[None, None].float(), disk[None, None], padding=radius)[0, 0] > 0.5


def j_and_f(found: Int64[Tensor, "T H W"], truth: Int64[Tensor, "T H W"]) -> list[tuple[float, float]]:
    """Mean J and mean F over frames, for each object of the first frame; first and last frame do not count (DAVIS).

    Args:
        found: Object numbers, 0 for none.
        truth: The same.

    Raises:
        ValueError: Fewer than three frames, or no object.
    """
    objects = [int(number) for number in truth[0].unique() if number > 0]
    if len(truth) < 3 or not objects:
        raise ValueError("needs three frames and an object in the first")
    scores: list[tuple[float, float]] = []
    for number in objects:
        pairs = [(ours == number, theirs == number) for ours, theirs in zip(found[1:-1], truth[1:-1], strict=True)]
        scores.append(
            (sum(region(*pair) for pair in pairs) / len(pairs), sum(boundary(*pair) for pair in pairs) / len(pairs))
        )
    return scores
