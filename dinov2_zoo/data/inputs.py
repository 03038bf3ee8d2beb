"""Whatever a person may call "my images", as one stream of photos to be decoded."""

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from dinov2_zoo.data.decode import decode
from dinov2_zoo.data.pictures import Picture, Pictures, split_picture
from dinov2_zoo.data.sources import KINDS, Files, Source, left_out_of, open_source
from dinov2_zoo.data.tables import image_bytes, open_table, stream_table
from dinov2_zoo.data.urls import Urls
from dinov2_zoo.errors import DataError

Photo = str | Path | Picture
"""A picture, where one lies, or the text of a source of many."""
Images = Photo | Iterable[Photo] | Source
"""One or many; datasets of the library `datasets` are iterables of photos too."""


@dataclass(frozen=True)
class Input:
    """One photo that has not been read yet."""

    source: Source
    index: int

    @property
    def name(self) -> str:
        """Path, address, row, or number."""
        return self.source.name(self.index)

    def image(self) -> Image.Image:
        """The photo, upright and in RGB.

        Raises:
            DecodeError: It cannot be read; without its name.
            DataError: It is an array of numbers that are no picture.
        """
        return decode(self.source.read(self.index))


class Inputs:
    """Photos in turn.

    Args:
        images: What `open_inputs` takes.

    Attributes:
        total: Their number; None where only going through them tells.
        left_out: Files beside them that are not read, by kind; complete after the last photo.
    """

    def __init__(self, images: Images) -> None:
        self.left_out: Counter[str] = Counter()
        self.total: int | None = None
        self._sources: Iterable[Source]
        if isinstance(images, str | os.PathLike):
            images = open_by_name(os.fspath(images))
        elif isinstance(images, np.ndarray) and images.dtype.kind in "UO":  # an array of paths
            images = images.tolist()
        if (stream := _streamed(images)) is not None:
            self._sources = stream
        elif isinstance(images, list | tuple):
            # All at once, so that what is no picture is said before the first hour.
            self._sources = list(self._each(images))
            self.total = sum(map(len, self._sources))
        elif (source := _one(images, 0)) is not None:
            self._sources = [source]
            self.total = len(source)
        elif isinstance(images, Iterable):
            self._sources = self._each(images)
        else:
            raise _no_photo(images)
        if self.total == 0:
            raise DataError("There are no images: give at least one.")

    def _each(self, images: Iterable[Any]) -> Iterator[Source]:
        seen = 0
        for image in images:
            source = _one(image, seen)
            if source is None:
                raise _no_photo(image)
            seen += len(source)
            yield source

    def __iter__(self) -> Iterator[Input]:
        for source in self._sources:
            self.left_out.update(left_out_of(source))
            for index in range(len(source)):
                yield Input(source, index)


def _one(image: Any, seen: int) -> Source | None:
    """One thing as a source of one photo or more; None for what is no photo.

    Args:
        image: Text, path, picture, batch, source, or dataset.
        seen: Photos before it.
    """
    if isinstance(image, str | os.PathLike):
        return _by_name(os.fspath(image))
    if isinstance(image, Image.Image | bytes | np.ndarray | Tensor):
        return Pictures(list(split_picture(image)), seen)
    if isinstance(image, Source):
        return image
    if (library := sys.modules.get("datasets")) is not None:
        if isinstance(image, library.Dataset):
            return open_table(image, "dataset")
        if isinstance(image, library.DatasetDict | library.IterableDatasetDict):
            raise DataError(f"The dataset has several splits: give one, as in dataset[{next(iter(image))!r}].")
    return None


def open_by_name(name: str) -> Source:
    """Photos by a path, an address, or the text of a source of many.

    Raises:
        DataError: There is nothing, or no image.
    """
    source = _by_name(name)
    if isinstance(source, Files) and len(source) == 1 and not os.path.exists(source.name(0)):
        raise DataError(f"There is no file or folder {name}: name a photo, an address, {KINDS}.")
    return source


def _by_name(name: str) -> Source:
    """As above; that a photo is not there is found out when it is read, as for a damaged one."""
    if name.startswith(("http://", "https://")):
        return Urls([name])
    path = os.path.expanduser(name)
    many = name.endswith((".tar", ".parquet", ".txt")) or name.startswith(("hf:", "package:"))
    pattern = (glob.has_magic(name) or "{" in name) and not os.path.exists(path)
    if many or pattern or not name or os.path.isdir(path):
        return open_source(name)
    return Files(Path(), [path])


def _streamed(images: Any) -> "Iterator[Source] | None":
    """A dataset of `datasets` that is read in turn only."""
    library = sys.modules.get("datasets")
    if library is None or not isinstance(images, library.IterableDataset):
        return None
    return (_Cell(name, cell) for name, cell in stream_table(images, "dataset"))


class _Cell:
    """One row of a streamed dataset."""

    labels: list[int] | None = None
    classes: list[str] | None = None

    def __init__(self, title: str, cell: Any) -> None:
        self._title = title
        self._cell = cell

    def __len__(self) -> int:
        return 1

    def read(self, index: int) -> bytes | Image.Image:
        return self._cell if isinstance(self._cell, Image.Image) else image_bytes(self._cell)

    def name(self, index: int) -> str:
        return self._title


def _no_photo(image: Any) -> DataError:
    hint = ""
    if isinstance(image, list | tuple | dict):
        hint = "; of a dataset that gives more than images, pass these alone: (image for image, label in dataset)"
    return DataError(
        f"{type(image).__name__} is no image: give paths, addresses, PIL images, numpy arrays, tensors, a folder, or "
        f"another source{hint}."
    )
