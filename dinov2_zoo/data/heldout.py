"""Keep some images out of training, so that agreement is measured on photos the student has never seen."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from dinov2_zoo.data.order import EpochOrder
from dinov2_zoo.data.sources import Source, heldout_source, open_source
from dinov2_zoo.errors import DataError


class Subset:
    """Some images of a source, in a given order.

    Args:
        source: All images.
        indices: Those to take; a `range` or another sequence that needs no memory for each will do.
    """

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source = source
        self.indices = indices
        labels = source.labels
        self.labels = None if labels is None else [labels[i] for i in indices]
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> bytes | Image.Image:
        """Raw image number `index` of this subset."""
        return self.source.read(self.indices[index])

    def name(self, index: int) -> str:
        """Name of image number `index` of this subset."""
        return self.source.name(self.indices[index])


class AllBut(Sequence[int]):
    """The numbers 0 to n - 1 without some, in order; only the missing ones take memory.

    Args:
        length: n.
        without: The missing ones, sorted.
    """

    def __init__(self, length: int, without: list[int]) -> None:
        self._length = length - len(without)
        # Before each missing number, so many are there.
        self._before = [number - place for place, number in enumerate(without)]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._length:
            raise IndexError(index)
        return index + bisect_right(self._before, index)


def split_heldout(source: Source, count: int, seed: int) -> tuple[Source, Source]:
    """Split a source at random into the images to train on and `count` images to measure on.

    Args:
        source: All images.
        count: Images to keep out; the split depends on `seed` and the source's length only.
        seed: Seed of the choice.

    Returns:
        (training images, held-out images).

    Raises:
        DataError: Fewer than twice `count` images.
    """
    if len(source) < 2 * count:
        raise DataError(
            f"{len(source)} images are too few to keep {count} out of training: "
            f"use at most {len(source) // 2}, or name other images with evaluation.heldout."
        )
    order = EpochOrder(len(source), "held out", seed)
    apart = sorted(order[slot] for slot in range(count))
    return Subset(source, AllBut(len(source), apart)), Subset(source, apart)


def keep_out(source: Source, apart: Source | None, count: int, seed: int) -> tuple[Source, Source | None]:
    """The images to train on, and those to measure on.

    Args:
        source: All images of a run.
        apart: Those to measure on, where they are in a source of their own: then all of `source` is trained on.
        count: Taken out of `source` otherwise; 0: none are measured on.
        seed: Of the choice.

    Raises:
        DataError: Fewer than twice `count` images.
    """
    return (source, apart) if apart is not None or not count else split_heldout(source, count, seed)


def split_by_class(source: Source, share: float, seed: int) -> tuple[Subset, Subset]:
    """Split labelled images at random, each class by the same share.

    Args:
        source: Images with labels.
        share: Of each class that goes into the second part, 0..1; at least one image.
        seed: Of the choice.

    Returns:
        The larger and the smaller part.

    Raises:
        DataError: The source has no labels, or a class has one image only.
    """
    if source.labels is None:
        raise DataError("The images have no labels: give a folder per class, or a source with labels.")
    labels = torch.tensor(source.labels)
    generator = torch.Generator().manual_seed(seed)
    apart: list[int] = []
    for label in labels.unique():
        mine = (labels == label).nonzero().flatten()
        if len(mine) < 2:
            raise DataError(f"Class {int(label)} has one image only, {source.name(int(mine[0]))}: name test images.")
        apart += mine[torch.randperm(len(mine), generator=generator)[: max(1, round(share * len(mine)))]].tolist()
    chosen = set(apart)
    return Subset(source, [i for i in range(len(source)) if i not in chosen]), Subset(source, sorted(apart))


def open_images(data: str, heldout: str | None) -> tuple[Source, Source | None]:
    """Open the images to train on, and those to measure on where they are in a source of their own.

    Args:
        data: Source of the training images.
        heldout: Source of the images to measure on; None takes what `data` itself keeps out, if it does.
    """
    apart = heldout or heldout_source(data)
    return open_source(data), open_source(apart) if apart else None
