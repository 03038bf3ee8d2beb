"""Windows that slide over an image: scores where they overlap are averaged."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def positions(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin; the last one is moved inwards so that it ends with the image."""
    if length <= window:
        return [0]
    count = -(-(length - window) // stride) + 1
    return [min(number * stride, length - window) for number in range(count)]


def slide(
    score: Callable[[Float[Tensor, "B 3 h w"]], Float[Tensor, "B K h w"]],
    image: Float[Tensor, "3 H W"],
    *,
    window: int,
    stride: int,
    batch: int,
) -> Float[Tensor, "K H W"]:
    """Mean scores of every pixel over the windows that hold it.

    Args:
        score: Scores each pixel of some windows.
        image: Normalised; one smaller than the window is scored whole.
        window: Side, pixels.
        stride: Between neighbouring windows, pixels.
        batch: Windows scored at a time; changes nothing but speed.
    """
    height, width = image.shape[1:]
    places = [(top, left) for top in positions(height, window, stride) for left in positions(width, window, stride)]
    total, count = None, image.new_zeros(height, width)
    for first in range(0, len(places), batch):
        part = places[first : first + batch]
        scores = score(torch.stack([image[:, top : top + window, left : left + window] for top, left in part]))
        if total is None:
            total = scores.new_zeros(scores.shape[1], height, width)
        for (top, left), found in zip(part, scores, strict=True):
            total[:, top : top + window, left : left + window] += found
            count[top : top + window, left : left + window] += 1
    assert total is not None
    return total / count
