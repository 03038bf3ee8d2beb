"""Images with a target for every pixel, and endless batches of them for training a head."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from dinov2_zoo.data.decode import DecodeError, decode
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.batches import endless_batches
from dinov2_zoo.training.distributed import DistributedContext


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
    try:
        photo = decode(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): fetch it again.") from error
    if (photo.height, photo.width) != target_size:
        raise DataError(
            f"{target} has {target_size[1]} x {target_size[0]} pixels, {path} {photo.width} x {photo.height}: give "
            "targets of the photo's size."
        )
    return photo


@dataclass(frozen=True)
class PairBatch:
    """Some pairs, prepared."""

    images: Float[Tensor, "B 3 H W"]
    """Normalised."""
    targets: Shaped[Tensor, "B H W"]


Transform = Callable[[Image.Image, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""Photo and target to equally large tensors [3, H, W] and [H, W]; all randomness from the generator."""


def training_batches(
    source: PairSource,
    transform: Transform,
    *,
    batch_size: int,
    processes: DistributedContext,
    start: int,
    workers: int,
) -> Iterator[PairBatch]:
    """This process's part of every batch, without end, from batch `start`; see `batches.endless_batches`.

    Args:
        source: Pairs.
        transform: Augmentation; must give one size.
        batch_size: Over all processes.
        processes: Share each batch.
        start: Batch to begin at.
        workers: Threads that read and augment, one batch ahead.

    Raises:
        DataError: There are no pairs, or one cannot be read.
    """

    def pair(index: int, randomness: torch.Generator) -> tuple[Tensor, Tensor]:
        return transform(*source.read(index), randomness)

    found = endless_batches(len(source), pair, batch_size=batch_size, processes=processes, start=start, workers=workers)
    for pairs in found:
        yield PairBatch(torch.stack([image for image, _ in pairs]), torch.stack([target for _, target in pairs]))
