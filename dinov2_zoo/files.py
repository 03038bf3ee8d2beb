"""Files that are there whole or not at all, whenever a process is killed; and their checksums."""

import contextlib
import hashlib
import os
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path) -> Generator[Path, None, None]:
    """Give a place beside `path` to write to; when the block ends well, what was written takes the name.

    The process's number is in that place's name, so that two runs may write the same file at once. The folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    yield partial
    os.replace(partial, path)


def sync_folder(folder: Path) -> None:
    """See a folder's names on the disk: a rename is not, until then. Does nothing where folders cannot be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
