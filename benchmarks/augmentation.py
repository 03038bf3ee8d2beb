"""Photos to crops: images a second and core, shared memory, and memory of the order; against torchvision and the past.

Run  python benchmarks/augmentation.py [--rounds 5]
Two global crops of 224 pixels and eight local ones of 98, from JPEGs of 500 x 375 and 4000 x 3000 pixels made of a
photo of scikit-image, one thread, in turns; processor time, for others may use the machine too. `torchvision` is its v2
pipeline with the same numbers, from decoding (its own) to normalised floats, as data loaders usually are. `8-bit chain`
is this package's way before: all of a JPEG decoded, each colour operation rounded to 8 bits, floats in the worker.
The order is that of a simulated source: an index of 10 thousand to 142 million images, the paper's number.
"""

import argparse
import io
import math
import time
from collections.abc import Callable

import numpy as np
import torch
import torchvision
import torchvision.transforms.v2.functional as tv
from paired import Spread, paired_seconds, peak_gib, ratio
from PIL import Image
from skimage import data
from torchvision.transforms import InterpolationMode, v2

from dinov2_zoo.config import CropConfig
from dinov2_zoo.data.augment import cut_view, draw_view, generator
from dinov2_zoo.data.crops import multi_crop
from dinov2_zoo.data.decode import decode
from dinov2_zoo.data.order import EpochOrder
from dinov2_zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalise, to_uint8

CONFIG = CropConfig()
IMAGES = {(500, 375): 20, (4000, 3000): 2}
"""Sides of a photo, and how many are cut in a round."""
LENGTHS = (10_000, 1_000_000, 142_000_000)


def jpeg(size: tuple[int, int]) -> bytes:
    """A photo, quality 90."""
    buffer = io.BytesIO()
    Image.fromarray(data.astronaut()).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def torchvisions(view: int) -> v2.Transform:
    """Torchvision's transforms of one crop."""
    local = view >= 2
    blur = (0.0, 0.9, 0.5)[min(view, 2)]
    return v2.Compose(
        [
            v2.RandomResizedCrop(
                CONFIG.local_size if local else CONFIG.global_size,
                scale=CONFIG.local_scale if local else CONFIG.global_scale,
                interpolation=InterpolationMode.BICUBIC,
                antialias=True,
            ),
            v2.RandomHorizontalFlip(CONFIG.flip),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], CONFIG.jitter),
            v2.RandomGrayscale(CONFIG.grayscale),
            v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], blur),
            v2.RandomSolarize(128, CONFIG.solarize if view == 1 else 0.0),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


TRANSFORMS = [torchvisions(view) for view in range(2 + CONFIG.local_count)]


def by_torchvision(raw: bytes, _: int) -> list[torch.Tensor]:
    """Crops, normalised."""
    encoded = torch.from_numpy(np.frombuffer(raw, np.uint8).copy())
    pixels = torchvision.io.decode_jpeg(encoded, torchvision.io.ImageReadMode.RGB)
    return [transform(pixels) for transform in TRANSFORMS]


def by_8_bit_chain(raw: bytes, sample: int) -> list[torch.Tensor]:
    """Crops, normalised, as this package made them before."""
    pixels = to_uint8(decode(raw))
    made: list[torch.Tensor] = []
    for number in range(2 + CONFIG.local_count):
        key = generator("crop", 0, 0, sample, number)
        view = draw_view(pixels.shape[2], pixels.shape[1], number, CONFIG, key)
        crop = cut_view(pixels, view).contiguous()
        for _, (name, factor) in sorted(view.colours().items()):
            crop = EIGHT_BITS[name](crop, factor)
        made.append(normalise(crop))
    return made


def _hue(pixels: torch.Tensor, turns: float) -> torch.Tensor:
    red, green, blue = levels = pixels.float()
    value = levels.amax(0)
    chroma = value - levels.amin(0)
    hue = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4)),
    )
    hue.div_(chroma.clamp(min=1)).add_(6 * turns)
    distance = hue + torch.tensor([5.0, 3.0, 1.0]).view(3, 1, 1)
    distance.sub_(torch.floor(distance / 6), alpha=6)
    below = distance.sub_(2).abs_().neg_().add_(2).clamp_(0, 1)
    return torch.addcmul(value, chroma, below, value=-1).round_().to(torch.uint8)


def _blur(pixels: torch.Tensor, sigma: float) -> torch.Tensor:
    raw = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(5)]
    weights = [weight / (2 * sum(raw) - raw[0]) for weight in raw]

    def along(padded: torch.Tensor, dim: int) -> torch.Tensor:
        length = padded.shape[dim] - 8
        total = padded.narrow(dim, 4, length) * weights[0]
        for offset in range(1, 5):
            total.add_(padded.narrow(dim, 4 - offset, length), alpha=weights[offset])
            total.add_(padded.narrow(dim, 4 + offset, length), alpha=weights[offset])
        return total

    padded = torch.nn.functional.pad(pixels.float(), [4] * 4, mode="reflect")
    return along(along(padded, -1), -2).round_().to(torch.uint8)


EIGHT_BITS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "brightness": tv.adjust_brightness,
    "contrast": tv.adjust_contrast,
    "saturation": tv.adjust_saturation,
    "hue": _hue,
    "grey": lambda pixels, _: tv.rgb_to_grayscale(pixels, num_output_channels=3),
    "blur": _blur,
    "solarise": lambda pixels, _: tv.solarize(pixels, 128),
}


def ours(raw: bytes, sample: int, *, coloured: bool) -> object:
    """Crops of 8 bits."""
    return multi_crop(raw, CONFIG, seed=0, epoch=0, sample_id=sample, coloured=coloured)


SIDES: dict[str, Callable[[bytes, int], object]] = {
    "ours, colours by workers": lambda raw, sample: ours(raw, sample, coloured=True),
    "ours, colours by a GPU": lambda raw, sample: ours(raw, sample, coloured=False),
}
OTHERS: dict[str, Callable[[bytes, int], object]] = {"torchvision": by_torchvision, "8-bit chain": by_8_bit_chain}


def compare(size: tuple[int, int], rounds: int) -> None:
    """Print images a second and core."""
    raw, count = jpeg(size), IMAGES[size]

    def cut(side: Callable[[bytes, int], object]) -> Callable[[], None]:
        def all_of_them() -> None:
            for sample in range(count):
                side(raw, sample)

        return all_of_them

    print(f"JPEG of {size[0]} x {size[1]}, images a second and core")
    for name, side in SIDES.items():
        for other, theirs in OTHERS.items():
            pairs = paired_seconds(cut(side), cut(theirs), rounds, clock=time.process_time)
            rates = [Spread.of([count / pair[which] for pair in pairs]) for which in (0, 1)]
            print(f"  {name:25} {rates[0]}   {other:12} {rates[1]}   ratio {ratio(pairs)}")


def shared_memory() -> None:
    """Print what an image takes on its way to the training process."""
    crops = multi_crop(jpeg((500, 375)), CONFIG, seed=0, epoch=0, sample_id=0)
    mine = sum(part.nbytes for part in crops[:2])
    theirs = sum(crop.nbytes for crop in by_torchvision(jpeg((500, 375)), 0))
    print(
        f"Shared memory for an image: {mine / 1e6:.2f} MB, as floats {theirs / 1e6:.2f} MB: {theirs / mine:.1f} times"
    )


def memory_of_orders() -> None:
    """Print what the order of an epoch takes, here and by `randperm`."""
    for length in LENGTHS:

        def some(length: int = length) -> None:
            order = EpochOrder(length, "order", 0, 0)
            for slot in range(0, length, length // 1000):
                order[slot]

        drawn = peak_gib(lambda length=length: torch.randperm(length)[:1000].sum())
        print(f"Order of {length:11,} images: {peak_gib(some):.3f} GiB, by randperm {drawn:.3f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for size in IMAGES:
        compare(size, rounds)
    shared_memory()
    memory_of_orders()


if __name__ == "__main__":
    main()
