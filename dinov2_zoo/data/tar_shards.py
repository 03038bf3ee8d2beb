"""Images in tar shards (WebDataset's layout), read at random without unpacking.

A shard is a plain tar: files that share a name up to the first dot belong together, as `0001.jpg` and `0001.cls`.
The members' places are noted once, by reading the headers only; an image is then one seek and one read.
"""

import glob
import itertools
import re
import tarfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dinov2_zoo.data.decode import DecodeError
from dinov2_zoo.data.formats import kinds_of, no_images, readable_suffixes
from dinov2_zoo.errors import DataError


@dataclass(frozen=True)
class _Member:
    """Where an image lies."""

    shard: int
    offset: int
    size: int
    name: str


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
        self._members: list[_Member] = []
        labels: list[int | None] = []
        other: list[str] = []
        for number, path in enumerate(self._paths):
            members, found, rest = _index(path, number)
            self._members += members
            labels += found
            other += rest
        if not self._members:
            raise no_images(_several(self._paths), other)
        keys = {_key(member.name) for member in self._members}
        # Labels and captions of images are theirs, and nothing that was left out.
        self.left_out = dict(Counter(kinds_of(name for name in other if _key(name) not in keys)))
        known = [label for label in labels if label is not None]
        self.labels: list[int] | None = known if len(known) == len(labels) else None
        self.classes: list[str] | None = None

    def __len__(self) -> int:
        return len(self._members)

    def read(self, index: int) -> bytes:
        """The image's bytes.

        Raises:
            DecodeError: The shard has gone, or cannot be read.
        """
        member = self._members[index]
        try:
            with self._paths[member.shard].open("rb", buffering=0) as file:
                file.seek(member.offset)
                return file.read(member.size)
        except OSError as error:
            raise DecodeError(f"The shard cannot be read ({error}): check that it is still there.") from error

    def name(self, index: int) -> str:
        """Shard and member, as in "shards/000.tar/0001.jpg"."""
        member = self._members[index]
        return f"{self._paths[member.shard]}/{member.name}"


def _index(path: Path, number: int) -> tuple[list[_Member], list[int | None], list[str]]:
    """Images of one shard, the label of each or None, and the names of all other members."""
    members: list[_Member] = []
    labels: dict[str, int] = {}
    other: list[str] = []
    known = readable_suffixes()
    try:
        # "r:" is an uncompressed tar: in a compressed one nothing can be found without unpacking all before it.
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                name = PurePosixPath(info.name)
                if not info.isreg() or name.name.startswith("."):
                    continue
                if name.suffix.lower() in known:
                    members.append(_Member(number, info.offset_data, info.size, info.name))
                    continue
                other.append(info.name)
                if name.suffix == ".cls" and (file := tar.extractfile(info)) is not None:
                    labels[_key(info.name)] = _label(file.read(), f"{path}/{info.name}")
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}: check the path.") from error
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            f"{path} cannot be read as an uncompressed tar ({error}): if it is compressed, decompress it; "
            "if it is cut off, fetch it again."
        ) from error
    return members, [labels.get(_key(member.name)) for member in members], other


def _key(name: str) -> str:
    """What the files of one sample share: folder and name up to the first dot."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.split('.', 1)[0]}"


def _label(raw: bytes, name: str) -> int:
    try:
        return int(raw)
    except ValueError as error:
        raise DataError(f"{name} holds {raw[:20]!r}, not an integer label: correct it or leave it out.") from error


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
