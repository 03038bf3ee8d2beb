"""Position embeddings for any image size: the stored grid, resampled bicubically.

The published models were trained with two rules, and features differ by them (official `interpolate_pos_encoding`):
without registers the sampling step comes from a scale factor (target + 0.1) / stored, which shifts every coordinate a
little; with registers the grid is resized to an explicit size, antialiased. Neither is better; a model needs its own.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def resample_positions(
    grid: Float[Tensor, "1 N D"], height: int, width: int, *, offset: float, antialias: bool
) -> Float[Tensor, "1 M D"]:
    """Resample a square grid of position embeddings to `height` x `width` patches.

    Args:
        grid: Stored positions, row-major, N a square number.
        height: Patches vertically.
        width: Patches horizontally.
        offset: Added to the target before dividing by the stored side, in patches; 0 resizes to an explicit size.
        antialias: Smooth before shrinking.
    """
    side = round(grid.shape[1] ** 0.5)
    if (height, width) == (side, side):
        return grid
    image = grid.to(torch.promote_types(grid.dtype, torch.float32)).unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if offset:
        scale = ((height + offset) / side, (width + offset) / side)
        image = F.interpolate(image, scale_factor=scale, mode="bicubic", antialias=antialias)
    else:
        image = F.interpolate(image, size=(height, width), mode="bicubic", antialias=antialias)
    assert image.shape[2:] == (height, width), "the offset must not change the number of patches"
    return image.flatten(2).transpose(1, 2).to(grid.dtype)
