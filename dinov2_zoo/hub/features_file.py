"""Features in a parquet file that says what they are of: a row a photo, the model and the size in the metadata.

    name      string                     path, address or row of the photo
    feature   fixed_size_list<float>[D]  its class token, not scaled to unit length; 32 or 16 bits

pandas, polars, DuckDB and `datasets` read it as it is; `read_features` reads the metadata too.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.errors import ConfigError, DataError, first_line
from dinov2_zoo.files import atomic_write, try_writing

KEY = b"dinov2_zoo"
"""Under which the schema's metadata hold an `Origin`, as JSON."""


@dataclass(frozen=True)
class Origin:
    """What features were made with."""

    model: str
    """As it was named; a folder or file by its absolute path."""
    fingerprint: str
    """Tells its weights from others, `weights.fingerprint.weights_fingerprint`."""
    size: int
    """Side to which photos were prepared, pixels."""
    version: str
    """This package's."""


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that could not be written, before the work is done.

    Raises:
        ConfigError: `path` is no .parquet, is there already and not to be overwritten, or its folder cannot be made.
    """
    if path.suffix != ".parquet":
        raise ConfigError(
            f"Features are written to a .parquet file, not {path}: name it {path.with_suffix('.parquet')}."
        )
    if path.is_dir() or (path.exists() and not overwrite):
        raise ConfigError(f"{path} is there already: add --overwrite, or name another file.")
    try:
        try_writing(path.parent)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror or error}): name another folder.") from error


def write_features(
    path: Path, features: Float[Tensor, "n D"], names: list[str], origin: Origin, *, half: bool = False
) -> None:
    """Write features and their names, whole or not at all.

    Args:
        path: An earlier file is replaced.
        features: On the CPU.
        names: One for each row.
        origin: What they were made with.
        half: Store 16 bits: half the size, an error of 0.05 percent.

    Raises:
        DataError: The disk is full, or the folder cannot be written.
    """
    values = pa.array(features.to(torch.float16 if half else torch.float32).numpy().ravel())
    column = pa.FixedSizeListArray.from_arrays(values, features.shape[1])
    table = pa.table({"name": pa.array(names, pa.string()), "feature": column})
    table = table.replace_schema_metadata({KEY: json.dumps(dataclasses.asdict(origin)).encode()})
    try:
        with atomic_write(path) as partial:
            pq.write_table(table, partial)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror or error}): make room, or name another.") from error


def read_features(path: Path) -> tuple[Float[Tensor, "n D"], list[str], Origin]:
    """Read what `write_features` wrote, as fp32.

    Raises:
        DataError: There is no such file, or it is another kind of file.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}: make one with `dinov2-zoo embed PHOTOS {path}`.")
    try:
        table: Any = pq.read_table(path)
        origin = Origin(**json.loads(table.schema.metadata[KEY]))
        width: int = table.schema.field("feature").type.list_size
        parts = [torch.tensor(chunk.flatten().to_numpy()).float() for chunk in table.column("feature").chunks]
        return torch.cat(parts).view(-1, width), table.column("name").to_pylist(), origin
    # Not parquet, without our metadata, without our columns: pyarrow, json and dict have a kind for each.
    except Exception as error:
        raise DataError(
            f"{path} is no file of features ({first_line(error)}): make one with `dinov2-zoo embed PHOTOS {path}`."
        ) from error
