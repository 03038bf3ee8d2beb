"""Images in tar shards (WebDataset's layout), read at random without unpacking.

A shard is a plain tar: files that share a name up to the first dot belong together, as `0001.jpg` and `0001.cls`.
The members' places are noted once (`tar_index`), by reading the headers only; an image is then one seek and one read.
"""

import glob
import itertools
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dinov2_zoo.data.decode import DecodeError
from dinov2_zoo.data.tar_index import open_index
from dinov2_zoo.errors import DataError


class TarShards:
    """Images in uncompressed tar files, in the order of the files and of their members.

    No file stays open between reads, so the object may be copied to worker processes and used from threads.

    Args:
        paths: Tar files.

    Raises:
        DataError: A file is missing, compressed or damaged, or none holds an image.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = list(paths)
        self._index = open_index(self._paths, _several(self._paths))
        self.left_out = self._index.left_out
        self.classes: list[str] | None = None
        self._labels: list[int] | None = None

    def __reduce__(self) -> tuple[type["TarShards"], tuple[list[Path]]]:
        return type(self), (self._paths,)  # another process maps the index itself instead of being sent it

    def __len__(self) -> int:
        return len(self._index.members)

    @property
    def labels(self) -> list[int] | None:
        """Class of each image, if all have one."""
        if self._labels is None and self._index.labelled:
            self._labels = self._index.labels.tolist()  # only now: training asks for none
        return self._labels

    def read(self, index: int) -> bytes:
        """The image's bytes.

        Raises:
            DecodeError: The shard has gone, or cannot be read.
        """
        member = self._index.members[index]
        try:
            with self._path(index).open("rb", buffering=0) as file:
                file.seek(int(member["offset"]))
                return file.read(int(member["size"]))
        except OSError as error:
            raise DecodeError(f"The shard cannot be read ({error}): check that it is still there.") from error

    def name(self, index: int) -> str:
        """Shard and member, as in "shards/000.tar/0001.jpg"."""
        return f"{self._path(index)}/{self._index.name(index)}"

    def _path(self, index: int) -> Path:
        return self._paths[int(np.searchsorted(self._index.ends, index, side="right"))]


def expand(text: str) -> list[Path]:
    """Files that a path with `{000..009}`, `{a,b}`, `*`, `?`, `[...]` or `**` stands for, sorted.

    Raises:
        DataError: A wildcard fits no file, or a named file is missing.
    """
    paths: list[Path] = []
    for pattern in _braces(str(Path(text).expanduser())):
        if glob.has_magic(pattern) and not Path(pattern).exists():
            found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
            if not found:
                raise DataError(f"No file fits {pattern}: check the path and the wildcard.")
            paths += found
        elif Path(pattern).is_file():
            paths.append(Path(pattern))
        else:
            raise DataError(f"There is no file {pattern}: check the path.")
    return paths


def _braces(text: str) -> list[str]:
    """Shell-like braces; `{08..11}` keeps its zeros."""
    parts = re.split(r"\{([^{}]*)\}", text)  # text and contents of braces, alternating
    choices: list[list[str]] = []
    for position, part in enumerate(parts):
        if position % 2 == 0:
            choices.append([part])
        elif (span := re.fullmatch(r"(\d+)\.\.(\d+)", part)) is not None:
            low, high = span.groups()
            choices.append([str(value).zfill(len(low)) for value in range(int(low), int(high) + 1)])
        else:
            choices.append(part.split(","))
    return ["".join(choice) for choice in itertools.product(*choices)]


def _several(paths: list[Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{len(paths)} shards ({paths[0]} ...)"
