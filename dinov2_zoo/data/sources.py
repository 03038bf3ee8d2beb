"""Where images come from: one line of text opens a folder, a list, tar shards, parquet files or a Hub dataset."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from PIL import Image

from dinov2_zoo.data.decode import DecodeError
from dinov2_zoo.data.package_photos import open_package
from dinov2_zoo.data.tar_shards import IMAGE_EXTENSIONS, TarShards, expand, looked_for
from dinov2_zoo.errors import DataError, first_line

if TYPE_CHECKING:
    import datasets

KINDS = (
    "a folder, a .txt list, .tar shards, .parquet files, a folder of datasets.save_to_disk, "
    "hf:name[:config][@split] or package:photos/train"
)


@runtime_checkable
class Source(Protocol):
    """Encoded images in a fixed order, and their labels if they have any."""

    labels: list[int] | None
    """Class number of each image."""
    classes: list[str] | None
    """Names of the classes, if known."""

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
            - a `.txt` list: a path a line, relative to the list, with a tab and an integer label if there are labels;
              empty lines and lines that start with # do not count;
            - WebDataset tar shards: `x.tar`, `dir/*.tar`, `dir/shards-{000..009}.tar`; labels from `.cls` members;
            - `.parquet` files, likewise, with a column of images and perhaps one called label or labels;
            - a folder that `datasets.save_to_disk` wrote;
            - `hf:name[:config][@split]`, a dataset of the Hugging Face Hub (default split: train);
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
        return _open_hub(text.removeprefix("hf:"))
    if text.endswith(".tar"):
        return TarShards(expand(text))
    if text.endswith(".parquet"):
        return _open_parquet(text)
    path = Path(text).expanduser()
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
        return _open_saved(path)
    return _open_folder(path)


def heldout_source(text: str) -> str | None:
    """The source that keeps images aside for measuring what was trained on source `text`, if there is one."""
    return "package:photos/heldout" if text.strip() == "package:photos/train" else None


class Files:
    """Image files.

    Args:
        root: Folder that names are relative to.
        names: Paths of the files, relative to `root` or absolute.
        labels: Class of each.
        classes: Names of the classes.
    """

    def __init__(
        self, root: Path, names: list[str], labels: list[int] | None = None, classes: list[str] | None = None
    ) -> None:
        self._root = root
        self._names = names
        self.labels = labels
        self.classes = classes

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        """The file's bytes.

        Raises:
            DecodeError: The file is missing, or cannot be read.
        """
        try:
            return (self._root / self._names[index]).read_bytes()
        except OSError as error:
            raise DecodeError(f"The file cannot be read ({error.strerror or error}): restore it.") from error

    def name(self, index: int) -> str:
        """Path of the file."""
        return str(self._root / self._names[index])


def _open_folder(root: Path) -> Files:
    """All images below a folder, by path. Hidden files are not looked at; links to folders are followed once."""
    names: list[str] = []
    other: list[str] = []
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
                known = os.path.splitext(file)[1].lower() in IMAGE_EXTENSIONS
                (names if known else other).append(Path(folder, file).relative_to(root).as_posix())
    if not names:
        hint = next((f"; for these name {root}/*{end}" for end in (".tar", ".parquet") if _any(other, end)), "")
        raise DataError(f"No images in {root}: {looked_for(other)}{hint or '; name the folder that holds images'}.")
    names.sort()
    first = [name.split("/", 1)[0] for name in names]
    classes = sorted(set(first))
    if len(classes) < 2 or any("/" not in name for name in names):
        return Files(root, names)
    number = {name: i for i, name in enumerate(classes)}
    return Files(root, names, [number[name] for name in first], classes)


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
    # Only the first: asking for every file of a long list on a network disk takes minutes, and training reports others.
    if not (path.parent / names[0]).is_file():
        raise DataError(f"{path} names {names[0]}, but there is no file {path.parent / names[0]}: correct the list.")
    return Files(path.parent, names, labels or None)


class Table:
    """A column of images in a `datasets.Dataset`.

    Args:
        rows: The dataset, with `column` undecoded.
        column: Name of the image column.
        title: What names start with.
        labels: Class of each image.
        classes: Names of the classes.
    """

    def __init__(
        self,
        rows: "datasets.Dataset",
        column: str,
        title: str,
        labels: list[int] | None = None,
        classes: list[str] | None = None,
    ) -> None:
        self._rows = rows
        self._column = column
        self._title = title
        self.labels = labels
        self.classes = classes

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> bytes:
        """The image's bytes.

        Raises:
            DecodeError: The row is empty, or the file that it names cannot be read.
        """
        cell = self._rows[index][self._column]
        path = None
        if isinstance(cell, dict):
            path, cell = cell.get("path"), cell.get("bytes")
        if cell is not None:
            return bytes(cell)
        if path is None:
            raise DecodeError("The row holds no image: remove it.")
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise DecodeError(f"The file {path} cannot be read ({error.strerror or error}): restore it.") from error

    def name(self, index: int) -> str:
        """Dataset and row."""
        return f"{self._title}[{index}]"


def _table(rows: "datasets.Dataset", title: str) -> Table:
    """Find the columns of images and labels, by type and by name."""
    import datasets

    features: dict[str, Any] = dict(rows.features)
    column = next((name for name, kind in features.items() if isinstance(kind, datasets.Image)), None)
    if column is not None:
        rows = rows.cast_column(column, datasets.Image(decode=False))  # decode.py knows more kinds of images
    else:
        column = next((name for name, kind in features.items() if _holds_bytes(kind)), None)
    if column is None:
        raise DataError(f"No column of images in {title}; its columns are {', '.join(features)}: name another source.")
    if len(rows) == 0:
        raise DataError(f"{title} has no rows: name another split or file.")
    labels: list[int] | None = None
    classes: list[str] | None = None
    label = next((name for name in ("label", "labels") if name in features), None)
    if label is not None:
        values = list(rows[label])
        # Test splits on the Hub carry -1 for "not published"; a column of words or vectors is no class number either.
        if all(isinstance(value, int) and value >= 0 for value in values):
            labels, classes = values, getattr(features[label], "names", None)
    return Table(rows.select_columns([column]), column, title, labels, classes)


def _holds_bytes(kind: Any) -> bool:
    """True for a binary column, and for a struct with bytes: an image column whose metadata were lost."""
    if isinstance(kind, dict):
        kind = kind.get("bytes")
    return getattr(kind, "dtype", None) in ("binary", "large_binary")


def _open_parquet(text: str) -> Table:
    import datasets

    paths: Any = [str(path) for path in expand(text)]
    try:
        rows: Any = datasets.Dataset.from_parquet(paths)
    # pyarrow, fsspec and datasets each raise their own kinds for a file that is not parquet.
    except Exception as error:
        raise DataError(f"{text} cannot be read as parquet ({first_line(error)}): check the files.") from error
    return _table(rows, text)


def _open_saved(path: Path) -> Table:
    import datasets

    try:
        rows: Any = datasets.load_from_disk(str(path))
    # As above: many kinds, one remedy.
    except Exception as error:
        raise DataError(f"{path} cannot be read ({first_line(error)}): save the dataset again.") from error
    return _table(rows, str(path))


def _open_hub(text: str) -> Table:
    """`name[:config][@split]`."""
    import datasets

    name, _, split = text.partition("@")
    name, _, config = name.partition(":")
    if not name:
        raise DataError("hf: is not followed by a dataset: write hf:name[:config][@split].")
    try:
        rows: Any = datasets.load_dataset(name, config or None, split=split or "train")
    # No network, no such dataset, no access, no such split: datasets, huggingface_hub and httpx have a kind for each.
    except Exception as error:
        raise DataError(
            f"hf:{text} cannot be loaded ({first_line(error)}): check name, config and split; without a network, set "
            "HF_HUB_OFFLINE=1 and HF_DATASETS_OFFLINE=1 if the dataset is cached, or name a local folder."
        ) from error
    return _table(rows, f"hf:{text}")
