"""How depth images are changed for training (released configs): turned, mirrored, cropped, coloured."""

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

from dinov2_zoo.data.preprocess import normalise, to_uint8

DEGREES = 2.5  # largest angle, either way (official)


class DepthAugmentation:
    """Random choices and what they do to photo and depth.

    Args:
        crop: Height and width of the result, pixels; smaller images are padded, their depth there being unknown.
        brightness: Range of the brightness factor.
    """

    def __init__(self, crop: tuple[int, int], brightness: tuple[float, float]) -> None:
        self.crop, self.brightness = crop, brightness

    def __call__(
        self, photo: Image.Image, depth: Float[Tensor, "H W"], randomness: torch.Generator
    ) -> tuple[Float[Tensor, "3 h w"], Float[Tensor, "h w"]]:
        """Photo, normalised, and depth, both as large as the crop."""
        draw = torch.rand(12, generator=randomness, dtype=torch.float64).tolist()
        pixels, depth = to_uint8(photo), depth[None]
        if draw[0] < 0.5:
            angle = DEGREES * (2 * draw[1] - 1)
            pixels = tv.rotate(pixels, angle, InterpolationMode.BILINEAR)
            depth = tv.rotate(depth, angle, InterpolationMode.NEAREST)  # new corners are 0: unknown
        if draw[2] < 0.5:
            pixels, depth = tv.horizontal_flip(pixels), tv.horizontal_flip(depth)
        height, width = self.crop
        below, right = max(0, height - pixels.shape[1]), max(0, width - pixels.shape[2])
        pixels, depth = F.pad(pixels, (0, right, 0, below)), F.pad(depth, (0, right, 0, below))
        top = int(draw[3] * (pixels.shape[1] - height + 1))
        left = int(draw[4] * (pixels.shape[2] - width + 1))
        pixels = pixels[:, top : top + height, left : left + width]
        depth = depth[0, top : top + height, left : left + width]
        if draw[5] < 0.5:
            pixels = self._colour(pixels, draw[6:])
        return normalise(pixels), depth.contiguous()

    def _colour(self, pixels: Tensor, draw: list[float]) -> Tensor:
        gamma = 0.9 + 0.2 * draw[0]
        low, high = self.brightness
        channels = torch.tensor([0.9 + 0.2 * number for number in draw[2:5]]).view(3, 1, 1)
        bright = (pixels / 255) ** gamma * (low + (high - low) * draw[1]) * channels
        return (255 * bright).round().clamp(0, 255).to(torch.uint8)
