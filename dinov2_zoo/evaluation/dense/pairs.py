"""Images with a target for every pixel, and batches of them for training a head."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from dinov2_zoo.data.decode import DecodeError, decode
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.encoders.reading import Place


class PairSource(Protocol):
    """Photos, each with a target of its own size in pixels."""

    def __len__(self) -> int:
        """Number of pairs."""
        ...

    def read(self, index: int, /) -> tuple[Image.Image, Shaped[Tensor, "H W"]]:
        """Photo (RGB) and target: depth in metres, fp32, 0 where unknown; or class numbers, int64, 255 to be ignored.

        Raises:
            DataError: One of the two is missing, damaged or of another size; names the file.
        """
        ...

    def name(self, index: int, /) -> str:
        """Where the photo is from, for messages."""
        ...


def read_photo(path: Path, target: Path, target_size: tuple[int, int]) -> Image.Image:
    """The photo of a pair, RGB.

    Args:
        path: Of the photo.
        target: Path of its target, for messages.
        target_size: Height and width of the target, pixels.

    Raises:
        DataError: It cannot be read, or is of another size than its target.
    """
    photo = open_photo(path)
    if (photo.height, photo.width) != target_size:
        raise DataError(
            f"{target} has {target_size[1]} x {target_size[0]} pixels, {path} {photo.width} x {photo.height}: give "
            "targets of the photo's size."
        )
    return photo


def open_photo(path: Path) -> Image.Image:
    """A photo, RGB and upright.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return decode(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): fetch it again.") from error


@dataclass(frozen=True)
class PairBatch:
    """Some pairs, prepared."""

    images: Float[Tensor, "B 3 H W"]
    """Normalised."""
    targets: Shaped[Tensor, "B H W"]

    def pin_memory(self) -> "PairBatch":
        """The same batch in page-locked memory; torch's DataLoader calls it."""
        return PairBatch(self.images.pin_memory(), self.targets.pin_memory())


Transform = Callable[[Image.Image, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""Photo and target to equally large tensors [3, H, W] and [H, W]; all randomness from the generator."""


@dataclass(frozen=True)
class ReadPairs:
    """Makes batches of a source's pairs for training.

    Raises:
        DataError: When called: a pair cannot be read.
    """

    source: PairSource
    transform: Transform
    """Augmentation; must give one size."""

    def __call__(self, places: list[Place]) -> PairBatch:
        """Read and augment some pairs."""
        pairs = [self.transform(*self.source.read(place.item), place.randomness()) for place in places]
        return PairBatch(torch.stack([image for image, _ in pairs]), torch.stack([target for _, target in pairs]))
