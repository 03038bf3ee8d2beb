"""Images with a target for every pixel, and endless batches of them for training a head."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from dinov2_zoo.data.augment import generator
from dinov2_zoo.errors import DataError


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
    """This process's part of every batch, without end, from batch `start`.

    Each epoch is a new order; an epoch's last pairs join the next one's first in a batch. Order and augmentation follow
    from (seed, epoch, pair), so a resumed run sees what an uninterrupted one would, whatever the workers.

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
    if len(source) == 0:
        raise DataError("There are no images to train a head on: check the path.")
    if batch_size % world_size:
        raise DataError(f"A batch of {batch_size} does not divide among {world_size} processes: use a multiple.")
    orders: dict[int, list[int]] = {}

    def pair(number: int) -> tuple[Tensor, Tensor]:
        epoch, position = divmod(number, len(source))
        index = orders[epoch][position]
        return transform(*source.read(index), generator("pairs", seed, epoch, index))

    def numbers(batch: int) -> range:
        first = batch * batch_size
        for epoch in range(first // len(source), (first + batch_size - 1) // len(source) + 1):
            if epoch not in orders:
                orders[epoch] = torch.randperm(len(source), generator=generator("order", seed, epoch)).tolist()
        return range(first + rank, first + batch_size, world_size)

    with ThreadPoolExecutor(workers) as pool:
        ahead = pool.map(pair, numbers(start))
        batch = start
        while True:
            found = list(ahead)
            batch += 1
            for epoch in [epoch for epoch in orders if epoch < batch * batch_size // len(source)]:
                del orders[epoch]
            ahead = pool.map(pair, numbers(batch))
            yield PairBatch(torch.stack([image for image, _ in found]), torch.stack([target for _, target in found]))
