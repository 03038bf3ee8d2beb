"""`SHA256SUMS`: the checksums of a folder's files, as `sha256sum -c` reads them."""

from dataclasses import dataclass
from pathlib import Path

from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.files import atomic_write, sha256_of

CHECKSUMS = "SHA256SUMS"

# A card is edited where it is read, on the Hub, and nothing is computed from it.
NOT_LISTED = {CHECKSUMS, "README.md"}


@dataclass(frozen=True)
class Compared:
    """A folder beside its list."""

    listed: int
    """Number of files in the list."""
    differences: dict[str, list[str]]
    """Names of files that are "missing", and of those that "changed"."""
    unlisted: list[str]


def write_checksums(folder: Path, *names: str) -> None:
    """Write the list, or renew some of its lines. Called last by whoever adds a file to a model's folder.

    Args:
        folder: Files in it, at any depth, are listed; hidden ones and the card are not.
        names: Files whose lines are new, the others staying as they are; default: all.
    """
    old = read_checksums(folder) if names and (folder / CHECKSUMS).is_file() else {}
    listed = old | {name: sha256_of(folder / name) for name in names or _names(folder)}
    with atomic_write(folder / CHECKSUMS) as partial:
        partial.write_text("".join(f"{listed[name]}  {name}\n" for name in sorted(listed)))


def read_checksums(folder: Path) -> dict[str, str]:
    """SHA-256 by name.

    Raises:
        CheckpointError: The list is no list of checksums.
    """
    lines = (folder / CHECKSUMS).read_text(errors="replace").splitlines()
    pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
    if any(len(pair) != 2 or len(pair[0]) != 64 for pair in pairs):
        raise CheckpointError(f"{folder / CHECKSUMS} is no list of checksums: get the model again.")
    return {name.removeprefix("*"): checksum for checksum, name in pairs}


def compare_checksums(folder: Path) -> Compared | None:
    """Which files are not what the list says; None where there is no list.

    Raises:
        CheckpointError: The list is no list of checksums.
    """
    if not (folder / CHECKSUMS).is_file():
        return None
    listed = read_checksums(folder)
    held = _names(folder)
    missing = [name for name in listed if name not in held]
    changed = [name for name in listed if name in held and sha256_of(folder / name) != listed[name]]
    unlisted = [name for name in held if name not in listed]
    return Compared(len(listed), {"missing": missing, "changed": changed}, unlisted)


def _names(folder: Path) -> list[str]:
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(
        path.as_posix() for path in paths if path.name not in NOT_LISTED and not any(p[0] == "." for p in path.parts)
    )
