"""Images with a target for every pixel, and endless batches of them for training a head."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from dinov2_zoo.evaluation.batches import endless_batches
from dinov2_zoo.evaluation.processes import Processes


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
    source: PairSource, transform: Transform, *, batch_size: int, processes: Processes, start: int, workers: int
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
