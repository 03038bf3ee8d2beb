"""Pixels to tensors: normalisation, and the one way in which evaluation prepares an image."""

import numpy as np
import torch
import torchvision.transforms.v2.functional as tv
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

# Mean and deviation of ImageNet's pixels in 0..1, as every DINOv2 checkpoint expects.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_uint8(image: Image.Image) -> UInt8[Tensor, "3 H W"]:
    """Pixels of an RGB image, 0..255."""
    # A copy, for PIL's memory is read-only. The channels stay innermost in memory: resizing is faster that way.
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)


def normalise(pixels: UInt8[Tensor, "*B 3 H W"]) -> Float[Tensor, "*B 3 H W"]:
    """0..255 to about -2..2.6: divided by 255, then ImageNet's mean and deviation."""
    return normalise_(pixels.to(torch.float32, memory_format=torch.contiguous_format, copy=True))


def normalise_(pixels: Float[Tensor, "*B 3 H W"]) -> Float[Tensor, "*B 3 H W"]:
    """The same of floats, in place. Channel by channel: constants in a tensor would have to be moved to a GPU first."""
    for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        pixels[..., channel, :, :].mul_(1 / (255 * std)).add_(-mean / std)
    return pixels


def short_side(size: int) -> int:
    """Length to which the short side of an image is resized before the crop of `size` pixels: 256/224 of it.

    Rounded down, as timm does; for multiples of 14 there is nothing to round.
    """
    return size * 256 // 224


def eval_image(image: Image.Image, size: int) -> Float[Tensor, "3 {size} {size}"]:
    """An image as evaluation sees it: short side to `size` * 256/224, centre crop, normalised.

    Bicubic with antialiasing on 8-bit pixels, as torchvision's and Meta's evaluation transforms do.

    Args:
        image: RGB.
        size: Side of the result, pixels.
    """
    pixels = to_uint8(image)
    pixels = tv.resize(pixels, [short_side(size)], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return normalise(tv.center_crop(pixels, [size, size]))
