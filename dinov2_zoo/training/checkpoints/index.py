"""torch's index of a checkpoint: a pickle, which is read only if it names nothing but what torch writes there.

The folder may be a stranger's, and its manifest resealed. A pickle can run any function that it names; so may a "bytes"
entry of the index, which torch unpickles without restriction when it is loaded. Our checkpoints have tensors only.
"""

import pickle
from pathlib import Path
from typing import Any

import torch

from dinov2_zoo.errors import CheckpointError

INDEX = ".metadata"
"""Name of the index in a checkpoint's folder."""

_FILESYSTEM, _METADATA = "torch.distributed.checkpoint.filesystem", "torch.distributed.checkpoint.metadata"

# A newer torch may write more: tests/training/checkpoints/test_index.py then fails, and says what. Never add
# BytesStorageMetadata: without it an index can have no bytes entry.
ALLOWED = {
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "collections.OrderedDict",
    "torch.Size",
    "torch.serialization._get_layout",
    f"{_FILESYSTEM}._StorageInfo",
    f"{_FILESYSTEM}._StoragePrefix",
    f"{_METADATA}.ChunkStorageMetadata",
    f"{_METADATA}.Metadata",
    f"{_METADATA}.MetadataIndex",
    f"{_METADATA}.StorageMeta",
    f"{_METADATA}.TensorProperties",
    f"{_METADATA}.TensorStorageMetadata",
    f"{_METADATA}._MEM_FORMAT_ENCODING",
}
"""What an index may name, besides torch's dtypes; nothing here runs anything."""


def check_index(folder: Path) -> None:
    """Raise unless a checkpoint's index can be read, and its entries loaded, without running anything.

    Raises:
        CheckpointError: It names something that is not allowed, or is damaged.
    """
    try:
        with (folder / INDEX).open("rb") as file:
            _Strict(file).load()
    except (pickle.UnpicklingError, EOFError, OSError, AttributeError, ValueError, IndexError, KeyError) as error:
        raise CheckpointError(
            f"{folder / INDEX} is not an index that torch has written for this package ({error}), and reading it could "
            "run anything: get the checkpoint from where it was made."
        ) from error


class _Strict(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in ALLOWED or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {full}, which is not allowed there")
