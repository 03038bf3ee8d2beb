"""Which patches the student does not see: block-wise masks, as in BEiT (official `masking.py`, `collate.py`).

Ratios are stratified over the step's global crops: half of the crops get a mask, and the masked crops take their ratios
from equally wide bins, one each, so that every batch hides about the same number of patches.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dinov2_zoo.config import MaskConfig
from dinov2_zoo.errors import ConfigError

TRIES = 10
"""Attempts to place a block before the mask is left as it is (official)."""


def stratified_ratios(crops: int, config: MaskConfig, source: torch.Generator) -> Float[Tensor, " crops"]:
    """Share of patches to hide in each crop; 0 for crops without a mask, of which there are crops - int(crops * share).

    Args:
        crops: Global crops of the step, over all processes.
        config: Share of crops that get a mask; range of ratios.
        source: Where the randomness comes from.
    """
    masked = int(crops * config.share)
    low, high = config.ratios
    place = (torch.arange(masked) + torch.rand(masked, generator=source)) / max(1, masked)
    ratios = torch.zeros(crops)
    ratios[torch.randperm(crops, generator=source)[:masked]] = low + (high - low) * place
    return ratios


def block_mask(side: int, ratio: float, config: MaskConfig, source: torch.Generator) -> Bool[Tensor, " N"]:
    """Hide blocks of a square grid until `ratio` of it is hidden; never more, and a little less where none fits.

    A block's area is uniform between the smallest block and what is left to hide, or half of the grid if that is less;
    so the last ones may be smaller than the smallest (official). Its aspect is log-uniform. A block that is as long as
    the grid on a side, or would hide too much or nothing new, is drawn again.

    Args:
        side: Of the grid, patches.
        ratio: Share to hide; 0 hides nothing.
        config: Smallest block, aspect; `exact` completes the count with single patches (DINOv3).
        source: Where the randomness comes from.

    Returns:
        True where a patch is hidden, row-major.
    """
    mask = torch.zeros(side, side, dtype=torch.bool)
    target = int(side * side * ratio)
    hidden = 0
    while hidden < target:
        added = _add_block(mask, target - hidden, config, source)
        if not added:
            break
        hidden += added
    mask = mask.flatten()
    if config.exact and hidden < target:
        free = (~mask).nonzero().squeeze(1)
        mask[free[torch.randperm(len(free), generator=source)[: target - hidden]]] = True
    return mask


def _add_block(mask: Tensor, left: int, config: MaskConfig, source: torch.Generator) -> int:
    """Hide one more block of at most `left` patches that are not hidden yet; how many they are, 0 for no success."""
    side = len(mask)
    most = min(left, side * side // 2)
    for numbers in torch.rand(TRIES, 4, generator=source, dtype=torch.float64).tolist():
        area = config.smallest_block + (most - config.smallest_block) * numbers[0]
        aspect = math.exp(math.log(config.aspect) * (1 - 2 * numbers[1]))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height < side and 0 < width < side):
            continue
        top, start = int(numbers[2] * (side - height + 1)), int(numbers[3] * (side - width + 1))
        block = mask[top : top + height, start : start + width]
        new = height * width - int(block.sum())
        if 0 < new <= left:
            block.fill_(True)
            return new
    return 0


def check_grid(side: int, config: MaskConfig) -> None:
    """Raise ConfigError unless masks can be placed on a grid of `side` x `side` patches."""
    if int(side * side * config.ratios[0]) < 1:
        raise ConfigError(
            f"Hiding {config.ratios[0]:.0%} of {side} x {side} patches hides none: "
            "raise masks.ratios or crops.global_size."
        )
    if side < 2 or (side - 1) ** 2 < config.smallest_block:
        raise ConfigError(
            f"Blocks of {config.smallest_block} patches do not fit inside {side} x {side}: lower masks.smallest_block "
            "or raise crops.global_size."
        )
