"""How images and masks are changed for training (released configs): scaled, cropped, mirrored, coloured, padded."""

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

from dinov2_zoo.data.preprocess import normalise, to_uint8
from dinov2_zoo.evaluation.segmentation.metrics import IGNORED

ONE_CLASS = 0.75
"""Largest share of one class that a crop should have; after ten tries any crop will do (official)."""
LONG = 4
"""The long side may be so many times the short one: scales are 2048 x 512 (official)."""


def scaled_size(width: int, height: int, short_side: float) -> list[int]:
    """Height and width with the ratio kept: the largest with a short side and a long side within bounds.

    Args:
        width: Pixels.
        height: Pixels.
        short_side: Bound of the short side, pixels; of the long side `LONG` times it.
    """
    factor = min(short_side / min(width, height), LONG * short_side / max(width, height))
    return [max(1, round(height * factor)), max(1, round(width * factor))]


class SegmentationAugmentation:
    """Random choices and what they do to photo and mask.

    Args:
        short_side: Of the scaled image at ratio 1, pixels.
        ratios: Range of the ratio.
        crop: Side of the result, pixels.
    """

    def __init__(self, short_side: int, ratios: tuple[float, float], crop: int) -> None:
        self.short_side, self.ratios, self.crop = short_side, ratios, crop

    def __call__(
        self, photo: Image.Image, mask: Int64[Tensor, "H W"], randomness: torch.Generator
    ) -> tuple[Float[Tensor, "3 S S"], Int64[Tensor, "S S"]]:
        """Photo, normalised, and mask, both as large as the crop."""
        draw = torch.rand(32, generator=randomness, dtype=torch.float64).tolist()
        low, high = self.ratios
        size = scaled_size(photo.width, photo.height, self.short_side * (low + (high - low) * draw[0]))
        pixels = tv.resize(to_uint8(photo), size, InterpolationMode.BILINEAR, antialias=True)
        mask = tv.resize(mask[None], size, InterpolationMode.NEAREST)[0]
        pixels, mask = self._cropped(pixels, mask, draw[1:21])
        if draw[21] < 0.5:
            pixels, mask = tv.horizontal_flip(pixels), tv.horizontal_flip(mask)
        image = normalise(distorted(pixels, draw[22:32]))
        below, right = self.crop - image.shape[1], self.crop - image.shape[2]
        # Padded after normalising, so with the mean colour.
        return F.pad(image, (0, right, 0, below)), F.pad(mask, (0, right, 0, below), value=IGNORED)

    def _cropped(self, pixels: Tensor, mask: Tensor, draw: list[float]) -> tuple[Tensor, Tensor]:
        height, width = min(self.crop, mask.shape[0]), min(self.crop, mask.shape[1])
        top = left = 0
        for attempt in range(10):
            top = int(draw[2 * attempt] * (mask.shape[0] - height + 1))
            left = int(draw[2 * attempt + 1] * (mask.shape[1] - width + 1))
            part = mask[top : top + height, left : left + width]
            counts = part[part != IGNORED].unique(return_counts=True)[1]
            if len(counts) > 1 and counts.max() < ONE_CLASS * counts.sum():
                break
        return pixels[:, top : top + height, left : left + width], mask[top : top + height, left : left + width]


def distorted(pixels: UInt8[Tensor, "3 H W"], draw: list[float]) -> UInt8[Tensor, "3 H W"]:
    """Brightness, contrast, saturation and hue, each with probability one half; contrast comes first or last.

    Args:
        pixels: 0..255.
        draw: Ten uniform numbers in 0..1. Ranges: brightness 32 of 255 either way, contrast and saturation 0.5 to 1.5,
            hue 18 degrees either way (official).
    """

    def contrast(x: Tensor) -> Tensor:
        return _bytes(x * (0.5 + draw[4])) if draw[3] < 0.5 else x

    if draw[0] < 0.5:
        pixels = _bytes(pixels + 32 * (2 * draw[1] - 1))
    if draw[2] < 0.5:
        pixels = contrast(pixels)
    if draw[5] < 0.5:
        pixels = tv.adjust_saturation(pixels, 0.5 + draw[6])
    if draw[7] < 0.5:
        pixels = tv.adjust_hue(pixels, (2 * draw[8] - 1) * 18 / 360)
    return contrast(pixels) if draw[2] >= 0.5 else pixels


def _bytes(x: Tensor) -> Tensor:
    return x.round().clamp(0, 255).to(torch.uint8)
