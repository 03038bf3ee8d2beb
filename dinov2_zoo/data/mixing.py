"""Mixed pictures: a crop is blended with another image's crop, or a square of it is covered by one.

A frozen teacher says of any picture what it sees, so pictures need not be natural ones, and mixtures make many of few
(Beyer et al. 2022, "A good teacher is patient and consistent"). Mixup: Zhang et al. 2018; CutMix: Yun et al. 2019.
"""

import torch
from jaxtyping import UInt8
from torch import Tensor

from dinov2_zoo.data.augment import generator


def mix(
    crops: UInt8[Tensor, "V 3 S S"], others: UInt8[Tensor, "V 3 S S"], share: float, *key: int | str
) -> UInt8[Tensor, "V 3 S S"]:
    """Mix each view of an image with the same view of another.

    Args:
        crops: Of the image, 0..255, their colours done.
        others: Of the other image.
        share: Probability that a crop is mixed, 0..1; half of those are blended, half are covered in part.
        key: Decides all that is drawn.
    """
    if not len(crops):
        return crops
    pairs = enumerate(zip(crops, others, strict=True))
    return torch.stack([_mixed(*pair, share, generator("mix", *key, view)) for view, pair in pairs])


def _mixed(
    crop: UInt8[Tensor, "3 S S"], other: UInt8[Tensor, "3 S S"], share: float, numbers: torch.Generator
) -> UInt8[Tensor, "3 S S"]:
    chance, blend, part, down, right = torch.rand(5, generator=numbers).tolist()
    if chance >= share:
        return crop
    if blend < 0.5:
        return torch.lerp(crop.float(), other.float(), part).round_().to(torch.uint8)
    size = crop.shape[-1]
    side = round(size * part**0.5)
    top, left = round(down * (size - side)), round(right * (size - side))
    covered = crop.clone()
    covered[:, top : top + side, left : left + side] = other[:, top : top + side, left : left + side]
    return covered
