"""Files that are there whole or not at all, whenever a process is killed; their checksums, and names to tell others."""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

TRIAL_BYTES = 1 << 16
"""What is written to see whether a folder can be (chosen here: what a run's config.json and first metrics take)."""


@contextlib.contextmanager
def atomic_write(path: Path) -> Generator[Path, None, None]:
    """Give a place beside `path` to write to; when the block ends well, what was written takes the name.

    The process's number is in that place's name, so that two runs may write the same file at once. The folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    yield partial
    os.replace(partial, path)


def try_writing(folder: Path) -> None:
    """Write and remove a file where a folder is or, if it is still to be made, in what will hold it.

    Raises:
        OSError: That cannot be done, or the disk is full.
    """
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(bytes(TRIAL_BYTES))
        file.flush()
        os.fsync(file.fileno())  # some file systems tell only then that they are full


def sync_folder(folder: Path) -> None:
    """See a folder's names on the disk: a rename is not, until then. Does nothing where folders cannot be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_sealed(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON with a checksum of itself, and see it on the disk."""
    text = json.dumps({"sha256": _digest(record), **record}) + "\n"
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def is_sealed(record: dict[str, Any]) -> bool:
    """Whether a record, read back, is as it was written; its checksum is taken out of it."""
    return record.pop("sha256", None) == _digest(record)


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def without_folders(source: str, *, hub_ids: bool = True) -> str:
    """A source of images or weights as strangers may read it: the last part of a local path, anything else whole.

    Args:
        source: A path; "package:photos/train", "hf:owner/name@split"; "nyu:PATH" and the like; or a Hub id.
        hub_ids: Whether owner/name may be a Hub id; it is not one where such a path exists.
    """
    scheme, rest = re.fullmatch(r"((?:[a-z][a-z0-9_]+:)?)(.*)", source, re.DOTALL).groups()  # pyright: ignore
    local = os.path.isabs(rest) or rest.startswith(("~", ".", "\\")) or re.match(r"[A-Za-z]:[\\/]", rest)
    if not local and scheme in ("package:", "hf:", "timm:"):
        return source
    if not local and not scheme and hub_ids and re.fullmatch(r"[\w.-]+/[\w.-]+", rest) and not os.path.exists(rest):
        return source
    last = re.split(r"[\\/]+", rest.rstrip("\\/"))[-1]
    # A home folder's last part is a person's name.
    return scheme + ("home" if last == "~" or os.path.expanduser(rest).rstrip("/") == os.path.expanduser("~") else last)
