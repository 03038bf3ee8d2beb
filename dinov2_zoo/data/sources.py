"""Where images come from: one line of text opens a folder, a list, tar shards, parquet files or a Hub dataset."""

import glob
import mimetypes
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image

from dinov2_zoo.data.decode import DecodeError
from dinov2_zoo.data.formats import OTHER, kinds_of, name_left_out, no_images
from dinov2_zoo.data.package_photos import open_package
from dinov2_zoo.data.tables import open_hub, open_parquet, open_saved
from dinov2_zoo.data.tar_shards import TarShards, expand
from dinov2_zoo.errors import DataError

KINDS = (
    "a folder, a .txt list, .tar shards, .parquet files, a pattern such as photos/*.jpg, "
    "a folder of datasets.save_to_disk, hf:name[:config][@split] or package:photos/train"
)


@runtime_checkable
class Source(Protocol):
    """Encoded images in a fixed order, and their labels if they have any.

    A source that found other files beside its images counts them by kind in `left_out`, a dict; see `describe`.
    """

    classes: list[str] | None
    """Names of the classes, if known."""

    @property
    def labels(self) -> list[int] | None:
        """Class number of each image."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def read(self, index: int, /) -> bytes | Image.Image:
        """Image `index`, as `dinov2_zoo.data.decode.decode` takes it; DecodeError if it cannot be read."""
        ...

    def name(self, index: int, /) -> str:
        """Where image `index` is from, for messages."""
        ...


def open_source(text: str) -> Source:
    """Open a set of images by a line of text.

    Args:
        text: One of
            - a folder, searched in depth; if all images lie in two or more subfolders, these are the classes;
            - image files by a pattern with `*`, `?`, `[...]`, `**` or `{a,b}`: `photos/2024-*/*.jpg`;
            - a `.txt` list: a path a line, relative to the list, with a tab and an integer label if there are labels;
              empty lines and lines that start with # do not count;
            - WebDataset tar shards: `x.tar`, `dir/*.tar`, `dir/shards-{000..009}.tar`; labels from `.cls` members;
            - `.parquet` files, likewise, with a column of images and perhaps one called label or labels;
            - a folder that `datasets.save_to_disk` wrote;
            - `hf:name[:config][@split]`, a dataset of the Hugging Face Hub (default split: train). The split is fetched
              whole into the cache of `datasets` first, for training reads at random; to go once through one that is too
              large for that, give `datasets.load_dataset(..., streaming=True)` to `Dinov2Model.embed`;
            - `package:photos/train`, `package:photos/heldout`, `package:digits`: see `package_photos`.

    Returns:
        The images, always in the same order.

    Raises:
        DataError: The path does not exist, or holds no images.
        ConfigError: package: with another name.
    """
    text = text.strip()
    if not text:
        raise DataError(f"The image source is empty: name {KINDS}.")
    if text.startswith("package:"):
        return open_package(text.removeprefix("package:"))
    if text.startswith("hf:"):
        return open_hub(text.removeprefix("hf:"))
    if text.endswith(".tar"):
        return TarShards(expand(text))
    if text.endswith(".parquet"):
        return open_parquet(text)
    path = Path(text).expanduser()
    if not path.exists() and (glob.has_magic(text) or "{" in text):
        return _open_files(Path(), [str(file) for file in expand(text) if file.is_file()], text)
    if not path.exists():
        raise DataError(f"There is no file or folder {path}: name {KINDS}.")
    if path.is_file():
        if path.suffix != ".txt":
            raise DataError(f"{path} is no source of images: name {KINDS}.")
        return _open_list(path)
    if (path / "dataset_dict.json").is_file():
        splits = sorted(child.name for child in path.iterdir() if child.is_dir())
        raise DataError(f"{path} holds several splits: name one of them, as in {path / (splits or ['train'])[0]}.")
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return open_saved(path)
    return _open_folder(path)


def heldout_source(text: str) -> str | None:
    """The source that keeps images aside for measuring what was trained on source `text`, if there is one."""
    return "package:photos/heldout" if text.strip() == "package:photos/train" else None


def describe(source: Source) -> str:
    """A source in words, as in "43 photos; 5 HEIC left out (need `pip install pillow-heif`); 1 other file left out"."""
    found = f"{len(source):,} photo{'s' * (len(source) != 1)}"
    return "; ".join(filter(None, (found, name_left_out(left_out_of(source)))))


def left_out_of(source: Source) -> dict[str, int]:
    """Files that lie beside a source's images and are not read, by kind: {"HEIC": 5, "other": 2}."""
    return dict(getattr(source, "left_out", {}))


class Files:
    """Image files.

    Args:
        root: Folder that names are relative to.
        names: Paths of the files, relative to `root` or absolute.
        labels: Class of each.
        classes: Names of the classes.
        left_out: Files that are not read, by kind.
    """

    def __init__(
        self,
        root: Path,
        names: list[str],
        labels: list[int] | None = None,
        classes: list[str] | None = None,
        left_out: Mapping[str, int] | None = None,
    ) -> None:
        self._root = root
        self.names = names
        self.labels = labels
        self.classes = classes
        self.left_out = dict(left_out or {})

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        """The file's bytes.

        Raises:
            DecodeError: The file is missing, or cannot be read.
        """
        try:
            return (self._root / self.names[index]).read_bytes()
        except OSError as error:
            raise DecodeError(f"The file cannot be read ({error.strerror or error}): check its path.") from error

    def name(self, index: int) -> str:
        """Path of the file."""
        return str(self._root / self.names[index])


def _open_folder(root: Path) -> Files:
    """All images below a folder, by path. Hidden files are not looked at; links to folders are followed once."""
    names: list[str] = []
    seen: set[str] = set()
    for folder, children, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            children.clear()
            continue
        seen.add(real)
        # os.walk goes where `children` says; sorted, so that of two links to one folder the same one counts everywhere.
        children[:] = sorted(child for child in children if not child.startswith(".") and child != "__MACOSX")
        for file in files:
            if not file.startswith("."):
                names.append(Path(folder, file).relative_to(root).as_posix())
    found = _open_files(root, sorted(names), str(root))
    first = [name.split("/", 1)[0] for name in found.names]
    classes = sorted(set(first))
    if len(classes) < 2 or any("/" not in name for name in found.names):
        return found
    number = {name: i for i, name in enumerate(classes)}
    return Files(root, found.names, [number[name] for name in first], classes, found.left_out)


def _open_files(root: Path, names: list[str], title: str) -> Files:
    """Those of some files that are images."""
    kinds = kinds_of(names)
    images = [name for name, kind in zip(names, kinds, strict=True) if not kind]
    if not images:
        hint = next((f"; for these name {root}/*{end}" for end in (".tar", ".parquet") if _any(names, end)), "")
        raise no_images(title, names, hint or "; name the folder that holds images")
    return Files(root, images, left_out=Counter(filter(None, kinds)))


def _any(names: Sequence[str], suffix: str) -> bool:
    return any(name.endswith(suffix) for name in names)


def _open_list(path: Path) -> Files:
    """Images that a text file names."""
    names: list[str] = []
    labels: list[int] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, tab, label = line.strip().partition("\t")
        names.append(name.strip())
        if not tab:
            continue
        try:
            labels.append(int(label))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {label!r} is not an integer label: correct it.") from error
    if not names:
        raise DataError(f"{path} names no images: write one path a line.")
    if labels and len(labels) != len(names):
        raise DataError(f"{path} has labels for {len(labels)} of {len(names)} images: give all of them one, or none.")
    # A list is believed where a name's ending says nothing: only what is known to be no image is left out.
    kinds = [
        kind if kind != OTHER or _is_foreign(name) else "" for name, kind in zip(names, kinds_of(names), strict=True)
    ]
    if all(kinds):
        raise DataError(f"{path} names no images that are read here: {name_left_out(Counter(kinds))}.")
    labels = [label for label, kind in zip(labels, kinds, strict=False) if not kind]  # there may be no labels
    names = [name for name, kind in zip(names, kinds, strict=True) if not kind]
    # Only the first: asking for every file of a long list on a network disk takes minutes, and training reports others.
    if not (path.parent / names[0]).is_file():
        raise DataError(f"{path} names {names[0]}, but there is no file {path.parent / names[0]}: correct the list.")
    return Files(path.parent, names, labels or None, left_out=Counter(filter(None, kinds)))


def _is_foreign(name: str) -> bool:
    """True where a name's ending tells of another kind of file: a video, a text, a document."""
    kind, _ = mimetypes.guess_type(name)
    return kind is not None and not kind.startswith("image/")
