"""The manifest of a store of targets: what was stored, of whom, and how well it stands for the teacher. Without torch.

It is written first, and again when the store is whole; then it is sealed with what all other files must be.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dinov2_zoo.config import CropConfig, from_dict
from dinov2_zoo.errors import DataError
from dinov2_zoo.files import is_sealed, write_sealed
from dinov2_zoo.targets.layout import Group, Layout

FORMAT = 1
"""Version of the lay-out. Raise it when the same numbers would be read otherwise."""

MANIFEST = "targets.json"

AGAIN = "store them again with `dinov2-zoo store-targets` in another folder"


@dataclass(frozen=True)
class Teacher:
    """Who said it."""

    fingerprint: str
    """`weights_fingerprint` of its network, as loaded."""
    norms: str
    """`norms_fingerprint`, which heads made on it bear."""
    patch_size: int
    """Pixels."""
    parameters: int
    """Of its network."""


@dataclass(frozen=True)
class Manifest:
    """All that is known of a store."""

    settings: dict[str, Any]
    """Data, teacher, crops, seed and held-out images, nested and named as a distillation's: its defaults."""
    layout: Layout
    teacher: Teacher
    images: str
    """Fingerprint of the images' names."""
    heldout: str
    """The same of those that were kept out; "" without any."""
    versions: dict[str, str]
    """Of the libraries that make crops, for words: what counts is the crops themselves (`checks.check_crops`)."""
    files: dict[str, str]
    """SHA-256 of the files beside the shards; none until the code is fitted."""
    agreement: dict[str, float | int | None] | None
    """Of stored with live tokens, on held-out images; None without any."""
    whole: bool
    """Every shard has been written."""

    def crops(self) -> CropConfig:
        """The augmentation of the crops that the targets are of: without local crops where none were stored."""
        crops = from_dict(CropConfig, self.settings["crops"])
        return crops if len(self.layout.groups) > 1 else replace(crops, local_count=0)

    def of(self) -> dict[str, Any]:
        """What two stores must share to be one: all but its length, and what was only found on the way."""
        shared = asdict(replace(self, layout=replace(self.layout, epochs=0)))
        for found in ("versions", "files", "agreement", "whole"):
            del shared[found]
        return shared


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, whole or not at all."""
    partial = folder / f".{MANIFEST}.part"
    write_sealed(partial, {"format": FORMAT, **asdict(manifest)})
    os.replace(partial, folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a store, finished or not.

    Raises:
        DataError: There is none, it is damaged, or another version wrote it.
    """
    try:
        record = json.loads((folder / MANIFEST).read_text())
    except OSError as error:
        raise DataError(
            f"{folder} holds no stored targets: make some with `dinov2-zoo store-targets PHOTOS --to {folder}`, or "
            "name the folder that does."
        ) from error
    except ValueError:
        record = None
    written = record.get("format") if isinstance(record, dict) else None
    if written is not None and written != FORMAT:
        raise DataError(
            f"{folder} has targets of format {written}, this version reads {FORMAT}: train with the version that wrote "
            f"it, or {AGAIN}."
        )
    if not isinstance(record, dict) or not is_sealed(record):
        raise DataError(f"{folder / MANIFEST} is damaged: get the store from where it was made, or {AGAIN}.")
    del record["format"]
    layout = dict[str, Any](record.pop("layout"))
    groups = tuple(Group(**group) for group in layout.pop("groups"))
    return Manifest(layout=Layout(groups=groups, **layout), teacher=Teacher(**record.pop("teacher")), **record)


def stored_settings(folder: str) -> dict[str, Any]:
    """Settings that a distillation with a store's targets begins from: what it leaves open is as it was stored."""
    return read_manifest(Path(folder).expanduser()).settings
