"""Position embeddings: how they are stored, and the stored grid resampled bicubically for any image size.

The published models were trained with two rules, and features differ by them (official `interpolate_pos_encoding`):
without registers the sampling step comes from a scale factor (target + 0.1) / stored, which shifts every coordinate a
little; with registers the grid is resized to an explicit size, antialiased. Neither is better; a model needs its own.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.config import ModelConfig


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
    if torch.are_deterministic_algorithms_enabled() and grid.requires_grad:
        # On CUDA the gradient of torch's bicubic resampling adds in no fixed order; that of the same map as a product
        # does not.
        with torch.no_grad():
            each = torch.eye(grid.shape[1], dtype=torch.float32, device=grid.device)[None]
            map_of = resample_positions(each, height, width, offset=offset, antialias=antialias)
        with torch.autocast(grid.device.type, enabled=False):
            return (map_of.to(torch.promote_types(grid.dtype, torch.float32)) @ grid.to(map_of.dtype)).to(grid.dtype)
    image = grid.to(torch.promote_types(grid.dtype, torch.float32)).unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if offset:
        scale = ((height + offset) / side, (width + offset) / side)
        image = F.interpolate(image, scale_factor=scale, mode="bicubic", antialias=antialias)
    else:
        image = F.interpolate(image, size=(height, width), mode="bicubic", antialias=antialias)
    assert image.shape[2:] == (height, width), "the offset must not change the number of patches"
    return image.flatten(2).transpose(1, 2).to(grid.dtype)


def fold_class_position(
    cls_token: Float[Tensor, "1 1 D"], positions: Float[Tensor, "1 M D"]
) -> tuple[Float[Tensor, "1 1 D"], Float[Tensor, "1 N D"]]:
    """Class token and grid of a model that stores a position for the class token too: it joins the token."""
    return cls_token + positions[:, :1], positions[:, 1:]


def with_class_position(grid: Float[Tensor, "1 N D"]) -> Float[Tensor, "1 M D"]:
    """Undo `fold_class_position`: a grid with a class position in front, which is zero, as the token contains it."""
    return torch.cat([torch.zeros_like(grid[:, :1]), grid], dim=1)


def grid_for(config: ModelConfig, grid: Float[Tensor, "1 N D"], rows: int, columns: int) -> Float[Tensor, "1 M D"]:
    """A model's stored grid, resampled by the rule that it was trained with."""
    return resample_positions(grid, rows, columns, offset=config.position_offset, antialias=config.position_antialias)


def stored_for(config: ModelConfig, positions: Float[Tensor, "1 N D"], side: int) -> Float[Tensor, "1 M D"]:
    """A model's `pos_embed`, class position included if it stores one, for a grid of side x side patches."""
    first = 0 if config.num_registers else 1
    return torch.cat([positions[:, :first], grid_for(config, positions[:, first:], side, side)], dim=1)
