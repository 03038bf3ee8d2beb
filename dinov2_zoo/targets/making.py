"""How a store is made: begun or gone on with, its code fitted once, its shards one by one, each there whole or not.

A shard's targets depend on the teacher and the shard alone, so that any number of processes write the same, in one go
or in several.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from dinov2_zoo.config import LoaderConfig
from dinov2_zoo.config.targets import StoreTargetsConfig
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.loader import Place, crops_at
from dinov2_zoo.data.skips import SkipLedger, guarded, list_skipped
from dinov2_zoo.data.sources import Source
from dinov2_zoo.errors import ConfigError, DataError
from dinov2_zoo.files import sha256_of
from dinov2_zoo.models.stored import TokenCode
from dinov2_zoo.models.tokens import Tokens
from dinov2_zoo.targets.layout import Shard, in_words
from dinov2_zoo.targets.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from dinov2_zoo.targets.shards import write_shard
from dinov2_zoo.targets.store import CODE, CROPS, HELDOUT, TargetStore
from dinov2_zoo.weights.save import save_tensors, writing

Teach = Callable[[Sequence[Tensor]], list[Tokens]]
"""The teacher's tokens of groups of crops [V, B, 3, S, S], fp32 or better."""

MARGIN = 1.01
"""Room asked for, over what the shards take: headers, other files (chosen here)."""


def begin(folder: Path, asked: Manifest) -> TargetStore:
    """The store that a folder holds a part of, or a new one; nothing is written.

    Args:
        folder: Perhaps there already.
        asked: What is to be stored.

    Raises:
        ConfigError: The folder holds something else, or a store with other settings: names what differs.
        DataError: Its manifest is damaged, or of another version.
    """
    if not (folder / MANIFEST).exists():
        if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ConfigError(f"{folder} holds other files but no targets: choose another folder with --to.")
        return TargetStore(folder, asked)
    held = read_manifest(folder)
    differing = _differences(json.loads(json.dumps(held.of())), json.loads(json.dumps(asked.of())))
    if differing:
        raise ConfigError(
            f"{folder} holds targets of another kind ({'; '.join(differing)}): ask for the same, or choose another "
            "folder with --to."
        )
    epochs = max(held.layout.epochs, asked.layout.epochs)
    whole = held.whole and epochs == held.layout.epochs
    return TargetStore(folder, replace(held, layout=replace(held.layout, epochs=epochs), whole=whole))


def _differences(old: object, new: object, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [d for key in old for d in _differences(old[key], new.get(key), f"{name}.{key}" if name else str(key))]
    return [] if old == new else [f"{name.removeprefix('settings.')}: {old} -> {new}"]


def check_room(folder: Path, needed: int) -> None:
    """Raise unless a folder's disk has room for so many bytes.

    Raises:
        ConfigError: It has too little.
    """
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed * MARGIN > free:
        raise ConfigError(
            f"The targets need {in_words(needed)} and the disk of {folder} has {in_words(free)} left: choose "
            "another with --to, or fewer --epochs or --directions."
        )


def lay_foundations(
    store: TargetStore,
    code: TokenCode,
    heldout: Tokens | None,
    crops: dict[str, Tensor],
    agreement: dict[str, float | int | None] | None,
) -> TargetStore:
    """Write what lies beside the shards, and the manifest; on one process.

    Args:
        store: New, or begun and without these files.
        code: How tokens are coded.
        heldout: The teacher's tokens of held-out images.
        crops: From `checks.probe_crops`.
        agreement: Of coded with live tokens of the held-out images.

    Raises:
        ConfigError: The folder cannot be written.
    """
    folder = store.folder
    files: dict[str, Mapping[str, Tensor]] = {CODE: code.state_dict(), CROPS: crops}
    if heldout is not None:
        files[HELDOUT] = {"class_token": heldout.class_token, "patches": heldout.patches}
    with writing(folder):
        for name, tensors in files.items():
            save_tensors({key: t.cpu().contiguous() for key, t in tensors.items()}, folder / name)
        sums = {name: sha256_of(folder / name) for name in files}
        manifest = replace(store.manifest, files=sums, agreement=agreement)
        write_manifest(folder, manifest)
    return TargetStore(folder, manifest)


def finish(store: TargetStore) -> None:
    """Declare a store whole."""
    write_manifest(store.folder, replace(store.manifest, whole=True))


def first_crops(
    source: Source, config: StoreTargetsConfig, manifest: Manifest, device: torch.device
) -> Iterator[Float[Tensor, "n 3 G G"]]:
    """Global crops of the first `fit_images` images of a store; of later epochs too, where one has fewer images."""
    total, size = min(config.fit_images, len(source) * manifest.layout.epochs), config.loader.batch_size
    places = [Place(*divmod(position, len(source))) for position in range(total)]
    parts = [places[first : first + size] for first in range(0, total, size)]
    crops, seed = replace(config.crops, local_count=0), config.runtime.seed
    for made in crops_at(source, crops, parts, seed=seed, loader=config.loader, device=device):
        yield made.global_crops.flatten(0, 1)


def teach_shards(
    store: TargetStore,
    shards: Sequence[Shard],
    source: Source,
    teach: Teach,
    *,
    device: torch.device,
    loader: LoaderConfig,
) -> Iterator[int]:
    """Write some shards, in turn. Gives the number of images after each batch.

    Args:
        store: With its foundations.
        shards: Of this process.
        source: Images, as many as the store's.
        teach: The teacher.
        device: Where it is.
        loader: Images at a time, decoding processes, and the largest share of the images that may not decode; they are
            listed in skipped.jsonl.

    Raises:
        DataError: More of them cannot be decoded.
        ConfigError: The disk is full, or the folder cannot be written.
    """
    manifest = store.manifest
    crops, seed = manifest.crops(), manifest.settings["runtime"]["seed"]
    code, sha256 = store.code().to(device), manifest.files[CODE]
    lists = [_batches_of(shard, loader.batch_size) for shard in shards]
    places = [part for parts in lists for part in parts]
    stream = crops_at(source, crops, places, seed=seed, loader=loader, device=device)
    made = guarded(stream, SkipLedger(len(source), loader.max_bad_share))
    for shard, parts in zip(shards, lists, strict=True):
        ids: list[Tensor] = []
        codes: list[list[Tensor]] = []
        for _ in parts:
            given = next(made, None)
            if given is None:
                raise DataError("The loader ended early: run the same command again, which goes on.")
            list_skipped(store.folder, given.skipped)
            ids.append(given.sample_ids.cpu())
            codes.append(_codes(given, teach, code))
            yield len(given.sample_ids)
        groups = [torch.cat(group) for group in zip(*codes, strict=True)]
        with writing(store.folder):
            write_shard(store.folder / shard.name, torch.cat(ids), groups, code=sha256)


def _batches_of(shard: Shard, size: int) -> list[list[Place]]:
    slots = range(shard.first, shard.first + shard.count)
    places = [Place(shard.epoch, slot) for slot in slots]
    return [places[first : first + size] for first in range(0, len(places), size)]


@torch.inference_mode()
def _codes(batch: Batch, teach: Teach, code: TokenCode) -> list[Int8[Tensor, "B V F"]]:
    return [code.encode(tokens).transpose(0, 1).cpu() for tokens in teach(batch.groups())]
