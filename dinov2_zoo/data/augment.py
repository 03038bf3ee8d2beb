"""The random choices for one crop, and what they do to its pixels.

Drawing and doing are apart: a `View` holds every choice as plain numbers, drawn from one generator, so that the same
crop can be made again anywhere, and the odds can be tested without touching a pixel.
Numbers: official `augmentations.py` and `transforms.py` of DINOv2, unless said otherwise.
"""

import hashlib
import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torchvision.transforms.v2.functional as tv
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms import InterpolationMode

from dinov2_zoo.config import CropConfig
from dinov2_zoo.data.colour import ColourSteps, colour_one

# Half-widths of the ranges around 1 (hue: around 0) from which colour jitter draws.
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1
BLUR_SIGMA = (0.1, 2.0)  # pixels
# Probability of blur on (global 1, global 2, local crops); `CropConfig.blur` says where the rows come from.
BLUR = {"released": (0.0, 0.9, 0.5), "nominal": (1.0, 0.1, 0.5), "off": (0.0, 0.0, 0.0)}
# Of the numbers drawn for a view, 36 at most are used: 22 for the box, 14 for the rest.
_NUMBERS = 40


@dataclass(frozen=True)
class View:
    """Every choice for one crop."""

    box: tuple[int, int, int, int]
    """Top, left, height, width in the image, pixels."""
    size: int
    """Side of the crop, pixels."""
    flip: bool
    """Mirror left and right."""
    jitter: tuple[tuple[str, float], ...]
    """Colour operations in order, each with its factor (hue: its shift in turns); empty for none."""
    grayscale: bool
    """Turn grey."""
    blur: float | None
    """Sigma of a Gaussian blur, pixels, or None."""
    solarize: bool
    """Invert bright values."""

    def colours(self) -> ColourSteps:
        """What is done to the colours, in turn."""
        steps = dict(enumerate(self.jitter))
        if self.grayscale:
            steps[4] = ("grey", 0.0)
        if self.blur is not None:
            steps[5] = ("blur", self.blur)
        if self.solarize:
            steps[6] = ("solarise", 0.0)
        return steps


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose numbers depend on `key` only; those of neighbouring keys are unrelated."""
    return torch.Generator().manual_seed(seed_of(*key))


def seed_of(*key: int | str) -> int:
    """A seed of 63 bits that depends on all of `key`.

    Python's own hash differs between processes for text; a sum or product of seeds would make neighbours repeat.
    """
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def seeded(seed: int) -> Generator[None, None, None]:
    """Let torch's own randomness on the CPU, as of new layers, follow from a seed within the block."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def draw_view(width: int, height: int, view: int, config: CropConfig, source: torch.Generator) -> View:
    """Choose how to cut and colour one crop.

    Args:
        width: Of the image, pixels.
        height: Of the image, pixels.
        view: 0 and 1 are the global crops, 2 and above the local ones.
        config: Sizes, ranges and probabilities.
        source: Where all randomness comes from.
    """
    numbers = iter(torch.rand(_NUMBERS, generator=source, dtype=torch.float64).tolist())
    local = view >= 2
    box = draw_box(width, height, config.local_scale if local else config.global_scale, config.aspect_ratio, numbers)
    flip = next(numbers) < config.flip
    jitter = _draw_jitter(numbers) if next(numbers) < config.jitter else ()
    grayscale = next(numbers) < config.grayscale
    blur = _between(*BLUR_SIGMA, next(numbers)) if next(numbers) < BLUR[config.blur][min(view, 2)] else None
    solarize = view == 1 and next(numbers) < config.solarize
    size = config.local_size if local else config.global_size
    return View(box, size, flip, jitter, grayscale, blur, solarize)


def draw_box(
    width: int, height: int, scale: tuple[float, float], aspect: tuple[float, float], numbers: Iterator[float]
) -> tuple[int, int, int, int]:
    """Choose a box by the rule of torchvision's RandomResizedCrop, for the official code uses that.

    Ten tries to place a box of uniform area and log-uniform aspect ratio; then the largest central box of legal aspect.

    Args:
        width: Of the image, pixels.
        height: Of the image, pixels.
        scale: Share of the image's area, (least, most).
        aspect: Width over height, (least, most).
        numbers: Uniform in 0..1; 22 at most are taken.

    Returns:
        Top, left, height, width, pixels.
    """
    for _ in range(10):
        area = width * height * _between(*scale, next(numbers))
        ratio = math.exp(_between(math.log(aspect[0]), math.log(aspect[1]), next(numbers)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(next(numbers) * (height - h + 1)), int(next(numbers) * (width - w + 1)), h, w
    w, h = width, height
    if width / height < aspect[0]:
        h = max(1, min(height, round(width / aspect[0])))
    elif width / height > aspect[1]:
        w = max(1, min(width, round(height * aspect[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def _draw_jitter(numbers: Iterator[float]) -> tuple[tuple[str, float], ...]:
    """The four colour operations, each with a uniform factor, in an order that is uniform too."""
    factors = (
        ("brightness", _between(1 - BRIGHTNESS, 1 + BRIGHTNESS, next(numbers))),
        ("contrast", _between(1 - CONTRAST, 1 + CONTRAST, next(numbers))),
        ("saturation", _between(1 - SATURATION, 1 + SATURATION, next(numbers))),
        ("hue", _between(-HUE, HUE, next(numbers))),
    )
    ranks = [next(numbers) for _ in factors]
    return tuple(factors[i] for i in sorted(range(len(factors)), key=ranks.__getitem__))


def _between(low: float, high: float, number: float) -> float:
    return low + (high - low) * number


def cut_view(pixels: UInt8[Tensor, "3 H W"], view: View) -> UInt8[Tensor, "3 S S"]:
    """Cut a view out of an image, resize it and perhaps mirror it. Its colours stay as they are."""
    crop = tv.resized_crop(
        pixels, *view.box, [view.size, view.size], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    return tv.horizontal_flip(crop) if view.flip else crop


def apply_view(pixels: UInt8[Tensor, "3 H W"], view: View) -> UInt8[Tensor, "3 S S"]:
    """Cut a view out of an image and colour it. Resizing comes first: what follows works on the small crop."""
    crop, colours = cut_view(pixels, view), view.colours()
    return colour_one(crop, colours) if colours else crop
