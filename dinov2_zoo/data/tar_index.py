"""Where the images of tar shards lie, noted once and kept in files that all processes map into memory.

20 bytes and the name for each image, none of them a process's own: the operating system drops them when it needs room.
The files are kept beside the shards, or in the cache folder where that cannot be written; they are made anew when a
shard has another size or date.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from dinov2_zoo.data.formats import kinds_of, no_images, readable_suffixes
from dinov2_zoo.errors import DataError

FOLDER = ".dinov2_zoo"
FORMAT = 1
MEMBER = np.dtype([("offset", "<i8"), ("size", "<u4"), ("name", "<i8")])
"""An image: its first byte in the shard, its bytes, and where its name ends in the file of names."""
FILES = {"members": MEMBER, "names": np.dtype("u1"), "labels": np.dtype("<i8")}


class TarIndex(NamedTuple):
    """Of some shards, in the order of the files and of their members."""

    members: np.ndarray
    """`MEMBER` [n]."""
    names: np.ndarray
    """All names, UTF-8, without gaps."""
    labels: np.ndarray
    """Class of each image, int64 [n]."""
    ends: np.ndarray
    """Images up to the end of each shard, int64."""
    labelled: bool
    """Whether all images have a label."""
    left_out: dict[str, int]
    """Other files, by kind."""

    def name(self, index: int) -> str:
        """Of an image within its shard."""
        first = int(self.members["name"][index - 1]) if index else 0
        return bytes(self.names[first : self.members["name"][index]]).decode(errors="surrogateescape")


def open_index(paths: Sequence[Path], title: str) -> TarIndex:
    """The index of some tar files, read or made.

    Args:
        paths: Of the files.
        title: Of all of them, for messages.

    Raises:
        DataError: A file is missing, compressed or damaged, or none holds an image.
    """
    key = _key(paths)
    places = [paths[0].absolute().parent / FOLDER, cache_folder()]
    for place in places:
        try:
            return _load(place / key)
        except OSError:  # not there, or another user keeps it to himself
            continue
        except (ValueError, KeyError):  # damaged
            shutil.rmtree(place / key, ignore_errors=True)
    for place in places:
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            return _make(paths, place, key, title)
    with tempfile.TemporaryDirectory() as place:
        return _make(paths, Path(place), key, title, keep=False)


def cache_folder() -> Path:
    """Where what can be made again is kept, on this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dinov2_zoo"


def _key(paths: Sequence[Path]) -> str:
    digest = hashlib.blake2b(repr((FORMAT, sorted(readable_suffixes()))).encode(), digest_size=16)
    for path in paths:
        try:
            found = path.stat()
        except OSError as error:
            raise DataError(f"There is no file {path}: check the path.") from error
        digest.update(repr((str(path.absolute()), found.st_size, found.st_mtime_ns)).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _load(folder: Path, *, mapped: bool = True) -> TarIndex:
    about = json.loads((folder / "index.json").read_text())
    read: Any = (lambda path, kind: np.memmap(path, kind, mode="r")) if mapped else np.fromfile
    arrays = {name: read(folder / name, kind) for name, kind in FILES.items()}
    if [len(array) for array in arrays.values()] != about["lengths"]:
        raise ValueError("cut off")
    return TarIndex(**arrays, ends=np.array(about["ends"]), labelled=about["labelled"], left_out=about["left_out"])


def _make(paths: Sequence[Path], place: Path, key: str, title: str, *, keep: bool = True) -> TarIndex:
    """Go through the shards, one in memory at a time, and write their index into a folder of `place`."""
    partial = Path(tempfile.mkdtemp(dir=place, prefix="part-"))
    try:
        ends, letters, labelled, left_out = [0], 0, True, Counter[str]()
        other: list[str] = []
        with contextlib.ExitStack() as opened:
            files = {name: opened.enter_context((partial / name).open("wb")) for name in FILES}
            for path in paths:
                shard = _read_shard(path)
                raw = [name.encode(errors="surrogateescape") for name in shard.names]
                rows = np.empty(len(raw), MEMBER)
                rows["offset"], rows["size"] = shard.places.T
                rows["name"] = letters + np.cumsum([len(name) for name in raw])
                letters += sum(map(len, raw))
                files["members"].write(rows.tobytes())
                files["names"].write(b"".join(raw))
                files["labels"].write(np.array([label or 0 for label in shard.labels], "<i8").tobytes())
                labelled = labelled and None not in shard.labels
                left_out.update(kinds_of(shard.left_out))
                ends.append(ends[-1] + len(raw))
                other = [*other, *shard.other] if not ends[-1] else []
        if not ends[-1]:
            raise no_images(title, other)
        about = {"ends": ends[1:], "labelled": labelled, "left_out": left_out}
        (partial / "index.json").write_text(json.dumps(about | {"lengths": [ends[-1], letters, ends[-1]]}))
        index = _load(partial, mapped=keep)  # what is mapped stays, whatever becomes of the name
        with contextlib.suppress(OSError):  # another process was faster
            os.replace(partial, place / key)
        return index
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Shard(NamedTuple):
    names: list[str]
    places: np.ndarray
    """Offset and size of each image, int64 [n, 2]."""
    labels: list[int | None]
    left_out: list[str]
    """Names of files that belong to no image."""
    other: list[str]
    """Names of all files that are no images."""


def _read_shard(path: Path) -> _Shard:
    names: list[str] = []
    places: list[tuple[int, int]] = []
    labels: dict[str, int] = {}
    other: list[str] = []
    known = readable_suffixes()
    try:
        # "r:" is an uncompressed tar: in a compressed one nothing can be found without unpacking all before it.
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue] (it would keep every header)
                name = PurePosixPath(info.name)
                if not info.isreg() or name.name.startswith("."):
                    continue
                if name.suffix.lower() in known:
                    names.append(info.name)
                    places.append((info.offset_data, info.size))
                    continue
                other.append(info.name)
                if name.suffix == ".cls" and (file := tar.extractfile(info)) is not None:
                    labels[_stem(info.name)] = _label(file.read(), f"{path}/{info.name}")
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}: check the path.") from error
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            f"{path} cannot be read as an uncompressed tar ({error}): if it is compressed, decompress it; "
            "if it is cut off, fetch it again."
        ) from error
    stems = {_stem(name) for name in names}
    # Labels and captions of images are theirs, and nothing that was left out.
    left_out = [name for name in other if _stem(name) not in stems]
    found = np.array(places, np.int64).reshape(-1, 2)
    return _Shard(names, found, [labels.get(_stem(name)) for name in names], left_out, other)


def _stem(name: str) -> str:
    """What the files of one sample share: folder and name up to the first dot."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.split('.', 1)[0]}"


def _label(raw: bytes, name: str) -> int:
    try:
        return int(raw)
    except ValueError as error:
        raise DataError(f"{name} holds {raw[:20]!r}, not an integer label: correct it or leave it out.") from error
