"""Files that are there whole or not at all, whenever a process is killed."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Generator[Path, None, None]:
    """Give a place beside `path` to write to; when the block ends well, what was written takes the name.

    The process's number is in that place's name, so that two runs may write the same file at once. The folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    yield partial
    os.replace(partial, path)
