"""Whether a store's targets are those of a run: its crops, its images, every byte. Before anything is trained."""

import hashlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dinov2_zoo.config import CropConfig, DistillConfig, LoaderConfig, all_problems
from dinov2_zoo.config.checks import check
from dinov2_zoo.data.loader import Place, crops_at
from dinov2_zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD
from dinov2_zoo.data.sources import Source
from dinov2_zoo.errors import DataError
from dinov2_zoo.files import sha256_of
from dinov2_zoo.targets.manifest import AGAIN, Manifest
from dinov2_zoo.targets.store import TargetStore

PROBES = 4
"""Images whose crops are stored themselves (chosen here), to be compared with those that are cut again."""

MOST_LEVELS = 0.5
"""Levels of 255 by which a crop may differ on average (chosen here). Largest on the demo's photos: resizing in floats,
as another processor may round, 0.2; photos saved again as JPEG of quality 95 1.6; bilinear resizing 2.6; another seed
above 45."""

LIBRARIES = ("dinov2-zoo", "torch", "torchvision", "pillow")
"""What decodes images and cuts crops."""

LOCAL = ("local_size", "local_scale", "local_count")


def versions() -> dict[str, str]:
    """Of the libraries that make crops."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def images_fingerprint(source: Source) -> str:
    """Digest of the names of a source's images, in order. Of paths what all have in common, the folder, is left out."""
    names = [source.name(i) for i in range(len(source))]
    least, most = min(names), max(names)  # what these share all share
    shared = next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), 0)
    digest = hashlib.blake2b(digest_size=16)
    for name in names:
        digest.update(f"{name[shared:]}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def probe_crops(source: Source, crops: CropConfig, seed: int) -> dict[str, Tensor]:
    """Crops of the first places of epoch 0, as pixels 0..255, and which images they are of."""
    places = [Place(0, slot) for slot in range(min(PROBES, len(source)))]
    batch = next(iter(crops_at(source, crops, [places], seed=seed, loader=LoaderConfig(workers=0))))
    found = {"sample_ids": batch.sample_ids, "global": _pixels(batch.global_crops)}
    return found | ({"local": _pixels(batch.local_crops)} if len(batch.local_crops) else {})


def _pixels(normalised: Float[Tensor, "V B 3 S S"]) -> UInt8[Tensor, "V B 3 S S"]:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((normalised * std + mean) * 255).round_().to(torch.uint8)


def check_fits_run(store: TargetStore, config: DistillConfig, images: Source, heldout: Source | None) -> None:
    """Raise unless a store's targets are of the crops that a run cuts.

    Args:
        store: Whole.
        config: Of the run, its `evaluation` settled.
        images: To train on.
        heldout: Kept out.

    Raises:
        ConfigError: Crops or seed differ: names all that do.
        DataError: The images differ, or this machine's libraries cut other crops of them.
    """
    manifest, asked = store.manifest, config.crops
    stored = manifest.crops()
    seed, size = manifest.settings["runtime"]["seed"], manifest.settings["evaluation"]["size"]
    local = needs_local(config)
    with all_problems():
        for field in fields(CropConfig):
            was, is_now = getattr(stored, field.name), getattr(asked, field.name)
            if field.name not in LOCAL or (local and field.name != "local_count"):
                check(was == is_now, _other(f"crops.{field.name}", is_now, was))
        check(
            not local or asked.local_count <= stored.local_count,
            f"crops.local_count is {asked.local_count}, and the targets in {store.folder} are of {stored.local_count} "
            f"local crops: use {stored.local_count} at most, or {AGAIN}.",
        )
        check(config.runtime.seed == seed, _other("runtime.seed", config.runtime.seed, seed))
        if heldout is not None and manifest.heldout:
            check(config.evaluation.size == size, _other("evaluation.size", config.evaluation.size, size))
    _check_images(manifest, store, images, heldout)
    found = probe_crops(images, asked if local else replace(asked, local_count=0), seed)
    _check_crops(store.probes(), found, manifest.versions)


def needs_local(config: DistillConfig) -> bool:
    """Whether a run asks a teacher about local crops."""
    return config.objective.kind == "features" and config.crops.local_count > 0


def _other(name: str, asked: object, stored: object) -> str:
    return f"{name} is {asked}, and the targets were stored with {stored}: use --{name} {stored}, or {AGAIN}."


def _check_images(manifest: Manifest, store: TargetStore, images: Source, heldout: Source | None) -> None:
    data, evaluation = manifest.settings["data"], manifest.settings["evaluation"]
    remedy = (
        f"use --data {data} as it was then, with --evaluation.heldout_count {evaluation['heldout_count']}, or {AGAIN}"
    )
    count = manifest.layout.images
    if images_fingerprint(images) != manifest.images:
        raise DataError(
            f"The targets in {store.folder} are of other images: of {count:,} with other names than the "
            f"{len(images):,} to train on here: {remedy}."
        )
    if heldout is not None and images_fingerprint(heldout) != manifest.heldout:
        named = f" and --evaluation.heldout {evaluation['heldout']}" if evaluation["heldout"] else ""
        raise DataError(
            f"The held-out images are others than those whose teacher's tokens are in {store.folder}: {remedy}{named}."
        )


def _check_crops(stored: Mapping[str, Tensor], found: Mapping[str, Tensor], then: Mapping[str, str]) -> None:
    same = torch.equal(stored["sample_ids"], found["sample_ids"])
    for name in found.keys() - {"sample_ids"}:
        was = stored[name][: len(found[name])]
        apart = (
            (was.float() - found[name].float()).abs().mean(dim=(2, 3, 4)) if was.shape == found[name].shape else None
        )
        same = same and apart is not None and float(apart.max()) <= MOST_LEVELS
    if same:
        return
    now = versions()
    changed = [f"{name} {then[name]}, now {now[name]}" for name in then if now.get(name) != then[name]]
    why = f"were stored with {', '.join(changed)}" if changed else "are of images that have changed since"
    remedy = "install those versions" if changed else "get those images back"
    raise DataError(
        f"The crops that are cut here are not those that the teacher saw: its targets {why}: {remedy}, or {AGAIN}."
    )


def check_bytes(store: TargetStore, *, bytewise: bool, part: int = 0, parts: int = 1) -> Iterator[None]:
    """Raise unless a store's files are what was written; several at a time. Gives one item for each shard checked.

    Args:
        store: To check.
        bytewise: Read and compare every byte; else only whether every file is there whole.
        part: Which part of the shards this process checks, 0 to `parts` - 1.
        parts: Processes that share the work.

    Raises:
        DataError: A file is missing, cut off or changed.
    """
    for name, expected in store.manifest.files.items():
        path = store.folder / name
        if not path.is_file() or sha256_of(path) != expected:
            what = "was changed since it was written" if path.is_file() else "is missing"
            raise DataError(f"{path} {what}: get the store from where it was made, or {AGAIN}.")
    mine = list(store.manifest.layout.shards())[part::parts]
    with ThreadPoolExecutor(4) as pool:
        yield from pool.map(lambda shard: store.check_shard(shard, bytewise=bytewise), mine)
