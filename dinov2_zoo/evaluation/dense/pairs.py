"""Images with a target for every pixel, and endless batches of them for training a head."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from dinov2_zoo.evaluation.batches import endless_batches


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
    seed: int,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 2,
) -> Iterator[PairBatch]:
    """This process's part of every batch, without end, from batch `start`; see `batches.endless_batches`.

    Args:
        source: Pairs.
        transform: Augmentation; must give one size.
        batch_size: Over all processes.
        seed: Of order and augmentation.
        start: Batch to begin at.
        rank: This process.
        world_size: Processes.
        workers: Threads that read and augment, one batch ahead.

    Raises:
        DataError: There are no pairs, or one cannot be read.
    """

    def pair(index: int, randomness: torch.Generator) -> tuple[Tensor, Tensor]:
        return transform(*source.read(index), randomness)

    found = endless_batches(
        len(source),
        pair,
        batch_size=batch_size,
        seed=seed,
        start=start,
        rank=rank,
        world_size=world_size,
        workers=workers,
    )
    for pairs in found:
        yield PairBatch(torch.stack([image for image, _ in pairs]), torch.stack([target for _, target in pairs]))
