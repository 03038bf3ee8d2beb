"""A shard's file: safetensors, memory-mapped, with a checksum of its tensors in its header."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int8, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dinov2_zoo.errors import DataError
from dinov2_zoo.targets.layout import Layout, Shard
from dinov2_zoo.weights.save import save_tensors

IDS = "sample_ids"
"""Tensor of the images that the shard's rows are of, int64."""

REMEDY = "remove it and run the same `dinov2-zoo store-targets` again: it alone is made again"


def codes_of(group: int) -> str:
    """Name of the tensor that holds a group's codes, int8 [count, views, bytes]."""
    return f"codes.{group}"


def write_shard(
    path: Path, sample_ids: Int64[Tensor, " n"], codes: Sequence[Int8[Tensor, "n V F"]], *, code: str
) -> None:
    """Write a shard, whole or not at all.

    Args:
        path: Its file.
        sample_ids: Which image each row is of: another than the place's own where that could not be decoded.
        codes: Of each group of crops.
        code: SHA-256 of the file that the codes can be read with.
    """
    tensors = {IDS: sample_ids.contiguous(), **{codes_of(i): group.contiguous() for i, group in enumerate(codes)}}
    save_tensors(tensors, path, {"sha256": _digest(tensors), "code": code})


def open_shard(path: Path) -> Any:
    """A shard, memory-mapped; rows are read by `get_slice`.

    Raises:
        DataError: It is missing or cut off.
    """
    try:
        return safe_open(path, "pt")
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing: the store is unfinished or not all here; run the same `dinov2-zoo store-targets` "
            "again, which goes on with it."
        ) from error
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}): {REMEDY}.") from error


def check_shard(folder: Path, layout: Layout, shard: Shard, *, code: str, bytewise: bool) -> None:
    """Raise unless a shard is what was written.

    Args:
        folder: Of the store.
        layout: Of the store.
        shard: Which.
        code: SHA-256 of the store's code.
        bytewise: Read and compare every byte; else whether it is there whole, by its header and length.

    Raises:
        DataError: It is missing, cut off, changed, or belongs to another store.
    """
    path = folder / shard.name
    opened = open_shard(path)
    header = opened.metadata() or {}
    expected = {IDS: [shard.count]} | {
        codes_of(i): [shard.count, views, width] for i, (views, width) in enumerate(layout.widths())
    }
    found = {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    if found != expected or header.get("code") != code:
        raise DataError(f"{path} belongs to another store of targets: {REMEDY}.")
    if bytewise and _digest({name: opened.get_tensor(name) for name in expected}) != header.get("sha256"):
        raise DataError(f"{path} was changed since it was written: {REMEDY}.")


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()
