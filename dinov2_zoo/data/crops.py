"""Multi-crop: two global and several local crops of one image, each cut and coloured on its own."""

import math
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from dinov2_zoo.config import CropConfig
from dinov2_zoo.data.augment import apply_view, cut_view, draw_view, generator
from dinov2_zoo.data.colour import ColourSteps
from dinov2_zoo.data.decode import decode
from dinov2_zoo.data.preprocess import to_uint8

MARGIN = 2
"""Least pixels of the decoded image for each pixel of the smallest box's crop, per side (chosen here, tried on seven
photos: at 2 a crop is on average 0.5 levels of 255 from one of the whole image, as after saving the photo again as JPEG
of quality 95; at 1, which just covers the crop, 2 levels, and it is softer)."""


class MultiCrop(NamedTuple):
    """The crops of one image."""

    large: UInt8[Tensor, "2 3 G G"]
    """Global crops."""
    small: UInt8[Tensor, "L 3 l l"]
    """Local crops; L may be 0."""
    colours: tuple[list[ColourSteps], list[ColourSteps]]
    """What is still to be done to the colours of each; nothing where it has been done."""


@torch.inference_mode()  # a sixth of the time is bookkeeping for gradients
def multi_crop(
    raw: bytes | Image.Image, config: CropConfig, *, seed: int, epoch: int, sample_id: int, coloured: bool = True
) -> MultiCrop:
    """Cut the crops of one image, 0..255.

    The crops depend on the image, `config` and the three numbers, and on nothing else: no global state, no other image,
    and no other crop, so that the first crops stay the same when `local_count` changes.

    Args:
        raw: Encoded, or opened; as `decode` takes it.
        config: Sizes, ranges and probabilities.
        seed: Of the run.
        epoch: Passes over the data so far; each pass sees other crops.
        sample_id: Index of the image in its source.
        coloured: Do all that is to be done to the colours; else it is returned.

    Raises:
        DecodeError: The image cannot be decoded.
    """
    pixels = to_uint8(decode(raw, scale=lambda width, height: spare_scale(width, height, config)))

    def crops(first: int, count: int, size: int) -> tuple[UInt8[Tensor, "count 3 size size"], list[ColourSteps]]:
        # Resizing leaves the channels innermost in memory, colouring outermost: no need to turn them here.
        layout = torch.contiguous_format if coloured else torch.channels_last
        out = torch.empty(count, 3, size, size, dtype=torch.uint8, memory_format=layout)
        left: list[ColourSteps] = []
        for i in range(count):
            numbers = generator("crop", seed, epoch, sample_id, first + i)
            view = draw_view(pixels.shape[2], pixels.shape[1], first + i, config, numbers)
            out[i] = apply_view(pixels, view) if coloured else cut_view(pixels, view)
            left.append({} if coloured else view.colours())
        return out, left

    large, of_large = crops(0, 2, config.global_size)
    small, of_small = crops(2, config.local_count, config.local_size)
    return MultiCrop(large, small, (of_large, of_small))


def spare_scale(width: int, height: int, config: CropConfig) -> int:
    """How many times smaller an image may be decoded for no crop to lose detail: 1, 2, 4 or 8.

    It follows from the smallest boxes that may be drawn, not from those that are: a crop depends on no other.

    Args:
        width: Of the image, pixels.
        height: Of the image, pixels.
        config: Sizes and ranges of the crops.
    """
    narrowest = min(config.aspect_ratio[0], 1 / config.aspect_ratio[1])
    spare = min(
        min(math.sqrt(width * height * least * narrowest), width, height) / (MARGIN * size)
        for size, (least, _) in (
            (config.global_size, config.global_scale),
            (config.local_size, config.local_scale),
        )
    )
    return next((scale for scale in (8, 4, 2) if spare >= scale), 1)
