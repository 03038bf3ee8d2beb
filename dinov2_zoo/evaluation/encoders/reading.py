"""How evaluation reads: worker processes prepare whole batches ahead of the model, by torch's DataLoader.

A batch is a list of places; what is made of a place follows from it alone, so neither the number of workers nor that of
processes changes anything but speed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dinov2_zoo.data.augment import generator
from dinov2_zoo.data.batch import Skipped
from dinov2_zoo.data.decode import DecodeError, decode
from dinov2_zoo.data.order import epoch_order
from dinov2_zoo.data.sources import Source
from dinov2_zoo.data.workers import MadeAhead, usable_cores
from dinov2_zoo.errors import ConfigError, DataError
from dinov2_zoo.training.distributed import DistributedContext

T = TypeVar("T")

SEED = 0
"""Seed of the order and of all that is drawn about an item: heads and probes are the same in every evaluation."""


class Place(NamedTuple):
    """An item to read, in an epoch."""

    epoch: int
    item: int

    def randomness(self) -> torch.Generator:
        """For all that is drawn about the item."""
        return generator("items", SEED, self.epoch, self.item)


Make = Callable[[list[Place]], T]
"""Makes a batch. What does so must be picklable, for workers that are spawned instead of forked."""


def cut(indices: Sequence[int], batch_size: int, workers: int) -> list[list[Place]]:
    """Places of some items in order, each read once: in batches, smaller ones where else workers would be idle."""
    size = max(1, min(batch_size, -(-len(indices) // max(1, 2 * workers))))
    places = [Place(0, index) for index in indices]
    return [places[first : first + size] for first in range(0, len(places), size)]


class TrainingOrder:
    """A batch sampler: this process's places of every batch of a training.

    Each epoch is a new order; an epoch's last items join the next one's first in a batch. All follows from `SEED`, so
    a resumed run sees what an uninterrupted one would.

    Args:
        length: Number of items.
        batch_size: Over all processes.
        context: The processes that share each batch.
        steps: Batches in all.
        start: Batch to begin at.

    Raises:
        DataError: There are no items.
        ConfigError: The batch does not divide among the processes.
    """

    def __init__(
        self, length: int, batch_size: int, context: DistributedContext, *, steps: int, start: int = 0
    ) -> None:
        if length == 0:
            raise DataError("There are no images to train a head on: check the path.")
        if batch_size % context.world_size:
            raise ConfigError(
                f"A batch of {batch_size} does not divide among {context.world_size} processes: use a multiple."
            )
        self._length, self._batch_size = length, batch_size
        self._rank, self._world_size = context.rank, context.world_size
        self._steps = range(start, steps)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[Place]]:
        for step in self._steps:
            first = step * self._batch_size
            positions = range(first + self._rank, first + self._batch_size, self._world_size)
            yield [self._place(*divmod(position, self._length)) for position in positions]

    def _place(self, epoch: int, slot: int) -> Place:
        return Place(epoch, epoch_order(self._length, SEED, epoch)[slot])


def read_ahead(make: Make[T], batches: Sequence[list[Place]] | TrainingOrder, workers: int) -> Iterator[T]:
    """Make batches in turn, ahead of the consumer.

    Args:
        make: Makes one.
        batches: Places of each.
        workers: Processes, but no more than there are cores; 0: all is made here, when it is asked for.

    Raises:
        DataError: A worker was killed.
        ZooError: Whatever `make` raises for the user.
    """
    workers = min(workers, len(batches), usable_cores())
    return iter(MadeAhead(make, batches, workers, lower="the task's workers or its batch size"))


Prepare = Callable[[Image.Image, int, torch.Generator], Tensor]
"""An RGB image, its number and randomness, to a tensor; all images of a batch must become equally large."""


@dataclass(frozen=True)
class ImageBatch:
    """Prepared images, without those that could not be decoded."""

    images: Float[Tensor, "B ..."]
    indices: list[int]
    """Numbers of the images in the source."""
    skipped: list[Skipped] = field(default_factory=list[Skipped])
    """Images left out, with the reason."""

    def pin_memory(self) -> "ImageBatch":
        """The same batch in page-locked memory; torch's DataLoader calls it."""
        return ImageBatch(self.images.pin_memory(), self.indices, self.skipped)


@dataclass(frozen=True)
class ReadImages:
    """Makes batches of a source's images."""

    source: Source
    prepare: Prepare

    def __call__(self, places: list[Place]) -> ImageBatch:
        """Decode and prepare some images."""
        images: list[Tensor] = []
        indices: list[int] = []
        skipped: list[Skipped] = []
        for place in places:
            try:
                image = decode(self.source.read(place.item))
            except DecodeError as error:
                skipped.append(Skipped(place.item, self.source.name(place.item), str(error)))
                continue
            images.append(self.prepare(image, place.item, place.randomness()))
            indices.append(place.item)
        return ImageBatch(torch.stack(images) if images else torch.empty(0), indices, skipped)
