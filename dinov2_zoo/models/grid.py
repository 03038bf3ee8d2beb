"""Patch tokens as the grid that they are."""

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.errors import ConfigError


def resample_grid(patches: Float[Tensor, "B N D"], count: int) -> Float[Tensor, "B M D"]:
    """Patch tokens of a square grid, resampled bilinearly to a square grid of `count` patches.

    Raises:
        ConfigError: One of the grids is not square.
    """
    if patches.shape[1] == count:
        return patches
    side, wanted = math.isqrt(patches.shape[1]), math.isqrt(count)
    if side * side != patches.shape[1] or wanted * wanted != count:
        raise ConfigError(f"Grids of {patches.shape[1]} and {count} patches are not square: use square images.")
    grid = patches.transpose(1, 2).unflatten(2, (side, side))
    return F.interpolate(grid, size=(wanted, wanted), mode="bilinear").flatten(2).transpose(1, 2)
