"""Features of a source's images on disk: made once, in shards, by any number of processes, resumed after a stop.

A shard holds the features of a fixed range of images. It is written aside and renamed when whole, so what carries a
shard's name is finished; its content's digest tells later damage. The number of each image travels with its features.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dinov2_zoo.data.sources import Source
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.encoder import LayeredEncoder
from dinov2_zoo.evaluation.features import class_features
from dinov2_zoo.evaluation.processes import Processes
from dinov2_zoo.evaluation.record import checksum

SHARD = 1024
"""Images in a shard (chosen here: a minute or two of work on a CPU, 1.5 MB at width 768)."""


@dataclass(frozen=True)
class Kind:
    """Which features of an image are kept, all with the final norm."""

    size: int = 224
    """Image side, pixels: short side to size * 256/224, centre crop."""
    blocks: int = 1
    """Class tokens of so many last blocks, the last block's at the end."""
    mean: bool = False
    """After them the mean of the last block's patch tokens."""

    def width(self, dim: int) -> int:
        """Numbers per image, of a model of width `dim`."""
        return dim * (self.blocks + self.mean)


@dataclass(frozen=True)
class Stored:
    """What a store holds, in the order of the source, each image once, on the CPU."""

    features: Float[Tensor, "n W"]
    """fp16, not normalised."""
    labels: Int64[Tensor, " n"] | None
    """Class numbers, if the source has any."""
    indices: Int64[Tensor, " n"]
    """Numbers of the images in the source."""
    skipped: dict[str, str]
    """Images that could not be decoded, with the reason."""


def source_checksum(source: Source) -> str:
    """Of the names and labels of a source's images, in order."""
    labels = source.labels or []
    names = (source.name(i) for i in range(len(source)))
    return checksum([*names, *labels])


def stored_features(
    encoder: LayeredEncoder,
    source: Source,
    folder: Path,
    kind: Kind,
    *,
    processes: Processes,
    batch_size: int = 64,
    workers: int = 4,
    say: Callable[[str], object] = lambda _: None,
) -> Stored:
    """Read the features of a source's images, making those first that are not there yet.

    Args:
        encoder: The model.
        source: Images.
        folder: Of all stores; this one's name follows from model, images and kind.
        kind: Which features.
        processes: Share the shards among themselves; each then reads all of them.
        batch_size: Images per forward pass.
        workers: Decoding threads.
        say: Takes a line of progress now and then.

    Raises:
        DataError: A shard is damaged, or belongs to another model; names the file.
    """
    owner = {
        "model": encoder.fingerprint(),
        "source": source_checksum(source),
        "kind": f"{kind.size} px, {kind.blocks} blocks{', mean' if kind.mean else ''}",
    }
    store = folder / f"{owner['model'][:8]}-{owner['source'][:8]}-{kind.size}-{kind.blocks}{'m' if kind.mean else ''}"
    ranges = [range(first, min(first + SHARD, len(source))) for first in range(0, len(source), SHARD)]
    lacking = [number for number in range(len(ranges)) if not _shard(store, number).is_file()]
    processes.barrier()  # nobody writes before all have looked
    if lacking:
        megabytes = len(source) * kind.width(encoder.dim) * 2 / 1e6
        say(f"features: {len(source):,} images, {megabytes:,.1f} MB in {store}; {len(lacking)} of {len(ranges)} shards")
    for number in lacking[processes.rank :: processes.world_size]:
        found = class_features(
            encoder,
            source,
            size=kind.size,
            batch_size=batch_size,
            indices=ranges[number],
            workers=workers,
            take=lambda images: last_features(encoder, images, kind.blocks, mean=kind.mean),
        )
        skipped = {skip.name: skip.reason for skip in found.skipped}
        _write(_shard(store, number), found.features.half(), torch.tensor(found.indices), owner, skipped)
    processes.barrier()
    return _read(store, len(ranges), owner, source)


def last_features(
    encoder: LayeredEncoder, images: Float[Tensor, "B 3 H W"], blocks: int, *, mean: bool
) -> Float[Tensor, "B W"]:
    """Normed class tokens of the last blocks, the last block's at the end, and after them the mean patch if asked for.

    Raises:
        ConfigError: The model has fewer blocks.
    """
    if blocks == 1 and not mean:
        return encoder(images).class_token
    layers = encoder.layers(images, range(encoder.depth - blocks, encoder.depth), norm=True)
    parts = [layer.class_token for layer in layers]
    return torch.cat([*parts, layers[-1].patches.mean((2, 3))] if mean else parts, 1)


def _shard(store: Path, number: int) -> Path:
    return store / f"{number:06d}.safetensors"


def _digest(features: Tensor, indices: Tensor) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in (features, indices):
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(path: Path, features: Tensor, indices: Tensor, owner: dict[str, str], skipped: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {**owner, "digest": _digest(features, indices), "skipped": json.dumps(skipped)}
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    save_file({"features": features.contiguous(), "index": indices}, aside, metadata)
    os.replace(aside, path)


def _read(store: Path, shards: int, owner: dict[str, str], source: Source) -> Stored:
    features: list[Tensor] = []
    indices: list[Tensor] = []
    skipped: dict[str, str] = {}
    for number in range(shards):
        path = _shard(store, number)
        again = "remove it, and it alone is made again"
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                part, index = file.get_tensor("features"), file.get_tensor("index")
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is damaged ({error}): {again}.") from error
        if metadata["digest"] != _digest(part, index):
            raise DataError(f"{path} is damaged (its digest does not fit): {again}.")
        if other := next((name for name, value in owner.items() if metadata[name] != value), None):
            raise DataError(f"{path} holds features of another {other}: {again}.")
        features.append(part)
        indices.append(index)
        skipped |= json.loads(metadata["skipped"])
    # An image that two shards hold counts once.
    order = {int(index): row for row, index in enumerate(torch.cat(indices))}
    numbers = sorted(order)
    rows = torch.tensor([order[number] for number in numbers])
    labels = None if source.labels is None else torch.tensor([source.labels[number] for number in numbers])
    return Stored(torch.cat(features)[rows], labels, torch.tensor(numbers), skipped)
