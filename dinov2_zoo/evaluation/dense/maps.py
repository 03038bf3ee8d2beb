"""Patch tokens as maps, of images of any size: what measures without training compare."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

from dinov2_zoo.data.preprocess import normalise, to_uint8
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.evaluation.encoders.encoder import LayeredEncoder


def whole_patches(sides: Sequence[float], patch: int) -> list[int]:
    """The nearest sides that are multiples of the patch, pixels, at least one patch each."""
    return [max(1, round(side / patch)) * patch for side in sides]


def view_size(size: int, patch: int, setting: str) -> int:
    """Side of a square view: the multiple of the patch nearest to `size`, pixels.

    Args:
        size: Asked for, pixels.
        patch: Of the model, pixels.
        setting: Name of the setting that asks, for messages.

    Raises:
        ConfigError: It is smaller than a patch.
    """
    if size < patch:
        raise ConfigError(f"{setting} is {size}, less than the model's patch of {patch} pixels: use {patch} or more.")
    return whole_patches([size], patch)[0]


def resized(photo: Image.Image, sides: Sequence[int]) -> Float[Tensor, "3 H W"]:
    """A photo at height and width `sides`, the ratio not kept, normalised; bicubic with antialiasing."""
    return normalise(tv.resize(to_uint8(photo), list(sides), InterpolationMode.BICUBIC, antialias=True))


def patch_maps(encoder: LayeredEncoder, images: Sequence[Float[Tensor, "3 H W"]]) -> list[Float[Tensor, "D h w"]]:
    """L2-normalised patch tokens of the last block, behind the final norm, on the model's device.

    Args:
        encoder: The model.
        images: Normalised, sides multiples of the patch. Those of one size share a forward pass.
    """
    found: dict[int, Tensor] = {}
    sizes: dict[torch.Size, list[int]] = {}
    for number, image in enumerate(images):
        sizes.setdefault(image.shape, []).append(number)
    for size, numbers in sizes.items():
        tokens = encoder(torch.stack([images[number] for number in numbers])).patches
        maps = F.normalize(tokens, dim=2).transpose(1, 2).unflatten(2, (size[1] // encoder.patch_size, -1))
        found.update(zip(numbers, maps, strict=True))
    return [found[number] for number in range(len(images))]
