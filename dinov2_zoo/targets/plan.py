"""What a store will be: every open setting settled from images, hardware and teacher, and its size in words."""

from collections.abc import Sequence
from dataclasses import replace

from dinov2_zoo.config import all_problems, to_dict
from dinov2_zoo.config.auto import is_auto
from dinov2_zoo.config.checks import check
from dinov2_zoo.config.settle import FIT_IMAGES, Hardware, decoding_workers, kept_out
from dinov2_zoo.config.targets import StoreTargetsConfig
from dinov2_zoo.data.sources import Source
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.targets.checks import images_fingerprint, versions
from dinov2_zoo.targets.layout import Group, Layout, Shard, in_words
from dinov2_zoo.targets.manifest import Manifest, Teacher
from dinov2_zoo.targets.store import TargetStore
from dinov2_zoo.weights.fingerprint import weights_fingerprint
from dinov2_zoo.weights.heads import norms_fingerprint

BATCH = {"cuda": 128, "cpu": 16}
"""Images that the teacher sees at a time, in each process (chosen here)."""

SHARE = 4
"""Channels of the teacher for each direction of a patch token, where none are asked for (chosen here, see LOG.md)."""


def settle(config: StoreTargetsConfig, images: int, *, apart: bool, hardware: Hardware) -> StoreTargetsConfig:
    """Settle all but the directions, which follow from the teacher.

    Args:
        config: As asked for.
        images: In the training source.
        apart: Held-out images are in a source of their own.
        hardware: What there is.
    """
    loader, evaluation = config.loader, config.evaluation
    batch = BATCH[hardware.device] if is_auto(loader.batch_size) else loader.batch_size
    loader = replace(loader, batch_size=batch, workers=decoding_workers(loader.workers, hardware))
    count = kept_out(evaluation.heldout_count, images, apart=apart)
    size = config.crops.global_size if is_auto(evaluation.size) else evaluation.size
    fit = FIT_IMAGES[hardware.device] if is_auto(config.fit_images) else config.fit_images
    evaluation = replace(evaluation, heldout_count=count, size=size)
    return replace(config, loader=loader, evaluation=evaluation, fit_images=fit)


def plan_store(
    config: StoreTargetsConfig, teacher: VisionTransformer, images: Source, heldout: Source | None
) -> Manifest:
    """The manifest of a store that is still to be made.

    Args:
        config: From `settle`.
        teacher: Its network, as loaded.
        images: To store targets of.
        heldout: Kept out.

    Raises:
        ConfigError: Crops do not divide into the teacher's patches, or there are more directions than channels.
    """
    dim, patch, crops = teacher.embed_dim, teacher.patch_size, config.crops
    directions = max(1, dim // SHARE) if is_auto(config.directions) else config.directions
    class_directions = dim if is_auto(config.class_directions) else config.class_directions
    with all_problems():
        config.check_patch(patch)
        for name, count in (("directions", directions), ("class_directions", class_directions)):
            check(count <= dim, f"{name} {count} is more than the teacher's {dim} channels: use {dim} at most.")
    sizes = [(2, crops.global_size), *([(crops.local_count, crops.local_size)] if crops.local_count else [])]
    groups = tuple(Group(views, (size // patch) ** 2) for views, size in (sizes if config.local else sizes[:1]))
    state = teacher.state_dict()
    settings = {
        "data": config.data,
        "teacher": config.teacher,
        "crops": to_dict(crops),
        "runtime": {"seed": config.runtime.seed},
        "evaluation": to_dict(config.evaluation),
    }
    return Manifest(
        settings=settings,
        layout=Layout(len(images), config.epochs, groups, class_directions, directions),
        teacher=Teacher(
            weights_fingerprint(state), norms_fingerprint(state), patch, sum(p.numel() for p in teacher.parameters())
        ),
        images=images_fingerprint(images),
        heldout=images_fingerprint(heldout) if heldout else "",
        versions=versions(),
        files={},
        agreement=None,
        whole=False,
    )


def size_in_words(store: TargetStore, lacking: Sequence[Shard]) -> str:
    """What will be stored, how large it is, and how much of it is there already."""
    layout = store.manifest.layout
    whole, left = layout.bytes_of(), layout.bytes_of(lacking)
    crops = " and ".join(f"{group.views} crops of {group.patches} patches" for group in layout.groups)
    there = f" {in_words(whole - left)} of them are there." if left < whole else ""
    return (
        f"{layout.images:,} images x {layout.epochs} epochs, {crops}; {layout.directions} bytes a patch token, "
        f"{layout.class_directions} a class token: {in_words(whole)} in {store.folder}.{there}"
    )


def agreement_in_words(found: dict[str, float | int | None]) -> str:
    """What is lost by the code, on held-out images."""
    names = ("class_cosine", "class_cosine_centred", "patch_cosine", "patch_cosine_centred", "patch_neighbours")
    lost = [found[name] for name in names]
    return (
        "Stored with live tokens of {} held-out images: cosine {:.4f} of class tokens ({:.4f} without their mean), "
        "{:.4f} of patch tokens ({:.4f}); {:.1%} of a patch's 5 neighbours stay."
    ).format(found["images"], *lost)
