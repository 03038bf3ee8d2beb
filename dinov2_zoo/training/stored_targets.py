"""A run's stored targets: opened and checked by all of its processes together, before anything else is done."""

from dinov2_zoo.config import DistillConfig
from dinov2_zoo.data.sources import Source
from dinov2_zoo.progress import track
from dinov2_zoo.targets.checks import check_bytes, check_fits_run
from dinov2_zoo.targets.store import TargetStore, open_store
from dinov2_zoo.training.runtime import Runtime


def take_targets(config: DistillConfig, runtime: Runtime, images: Source, heldout: Source | None) -> TargetStore | None:
    """The store that stands for a run's teacher; None where the teacher itself is asked.

    Args:
        config: Of the run, its `evaluation` settled.
        runtime: Each process checks its part of the shards, and an error is raised on all.
        images: To train on.
        heldout: Kept out.

    Raises:
        ConfigError: The store's crops or seed are others.
        DataError: Its images are, or it is unfinished or damaged.
    """
    if config.targets is None:
        return None
    with runtime.together():
        store = open_store(config.targets)
        check_fits_run(store, config, images, heldout)
        share = check_bytes(store, bytewise=config.verify_targets, part=runtime.rank, parts=runtime.world_size)
        for _ in track(share, None, "Checking the stored targets", runtime.console):
            pass
        return store
