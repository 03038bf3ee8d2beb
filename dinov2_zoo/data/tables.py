"""Images in a column of a table: parquet files, what `datasets` saved, datasets of the Hugging Face Hub."""

import contextlib
import ssl
import urllib.error
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dinov2_zoo.data.decode import DecodeError
from dinov2_zoo.data.tar_shards import expand
from dinov2_zoo.errors import DataError, first_line

if TYPE_CHECKING:
    import datasets


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
        return image_bytes(self._rows[index][self._column])

    def name(self, index: int) -> str:
        """Dataset and row."""
        return f"{self._title}[{index}]"


def image_bytes(cell: Any) -> bytes:
    """The encoded image of a table's cell: bytes, or a dict of bytes and the path of a file.

    Raises:
        DecodeError: The cell is empty, or the file that it names cannot be read.
    """
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


def open_table(rows: "datasets.Dataset", title: str) -> Table:
    """A dataset as a source: its columns of images and labels are found by type and by name.

    Args:
        rows: The dataset.
        title: What its images are called after.

    Raises:
        DataError: It has no column of images, or no rows.
    """
    features: dict[str, Any] = dict(rows.features)
    rows, column = _undecoded(rows, features, title)
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


def stream_table(rows: "datasets.IterableDataset", title: str) -> Generator[tuple[str, Any], None, None]:
    """Names and cells of the column of images of a dataset that is streamed, in turn; see `image_bytes`.

    Raises:
        DataError: It has no column of images.
    """
    features: dict[str, Any] = dict(rows.features or next(iter(rows.take(1)), {}))
    rows, column = _undecoded(rows, features, title)
    for number, row in enumerate(rows):
        yield f"{title}[{number}]", row[column]


def _undecoded(rows: Any, features: dict[str, Any], title: str) -> tuple[Any, str]:
    """The dataset with its column of images left encoded, for decode.py knows more kinds; and that column's name."""
    import datasets

    for name, kind in features.items():
        if isinstance(kind, datasets.Image):
            return rows.cast_column(name, datasets.Image(decode=False)), name
        if _holds_bytes(kind) or isinstance(kind, bytes | Image.Image):
            return rows, name
    raise DataError(f"No column of images in {title}; its columns are {', '.join(features)}: name another source.")


def _holds_bytes(kind: Any) -> bool:
    """True for a binary column, and for a struct with bytes: an image column whose metadata were lost."""
    if isinstance(kind, dict):
        kind = kind.get("bytes")
    return getattr(kind, "dtype", None) in ("binary", "large_binary")


def open_parquet(text: str) -> Table:
    """Parquet files, by a path with wildcards and braces."""
    import datasets

    paths: Any = [str(path) for path in expand(text)]
    try:
        rows: Any = datasets.Dataset.from_parquet(paths)
    # pyarrow, fsspec and datasets each raise their own kinds for a file that is not parquet.
    except Exception as error:
        raise DataError(f"{text} cannot be read as parquet ({first_line(error)}): check the files.") from error
    return open_table(rows, text)


def open_saved(path: Path) -> Table:
    """A folder that `datasets.save_to_disk` wrote."""
    import datasets

    try:
        rows: Any = datasets.load_from_disk(str(path))
    # As above: many kinds, one remedy.
    except Exception as error:
        raise DataError(f"{path} cannot be read ({first_line(error)}): save the dataset again.") from error
    return open_table(rows, str(path))


def open_hub(text: str) -> Table:
    """A dataset of the Hub, fetched whole into the cache of `datasets`; without a network, from there or not at all."""
    import datasets
    from datasets import config as settings

    name, _, split = text.partition("@")
    name, _, config = name.partition(":")
    if not name:
        raise DataError("hf: is not followed by a dataset: write hf:name[:config][@split].")
    cut_off = not (settings.HF_HUB_OFFLINE or Path(name).exists() or _answers(settings.HF_ENDPOINT))
    try:
        with _offline() if cut_off else contextlib.nullcontext():
            rows: Any = datasets.load_dataset(name, config or None, split=split or "train")
    # No network, no such dataset, no access, no such split: datasets, huggingface_hub and httpx have a kind for each.
    except Exception as error:
        if cut_off:
            raise DataError(
                f"hf:{text} is not in the cache, and {settings.HF_ENDPOINT} cannot be reached: check the "
                "network, or name a local folder."
            ) from error
        raise DataError(
            f"hf:{text} cannot be loaded ({first_line(error)}): check name, config and split, and log in with "
            "`hf auth login` if it is private or gated; or name a local folder."
        ) from error
    return open_table(rows, f"hf:{text}")


def _answers(address: str) -> bool:
    """True where a web server can be reached, over the proxies of the environment, within five seconds.

    `datasets` asks six times with growing pauses before it says that there is no network: half a minute.
    """
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError as error:
        # Certificates are the Hub library's own affair: it may know others than this interpreter.
        return isinstance(getattr(error, "reason", error), ssl.SSLError)


@contextlib.contextmanager
def _offline() -> Generator[None, None, None]:
    """Let `datasets` look into its cache only."""
    from datasets import config

    before, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
