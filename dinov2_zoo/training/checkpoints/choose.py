"""Which checkpoint a run goes on from; several runs together must stand at the same step."""

from collections.abc import Sequence
from pathlib import Path

from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.training.checkpoints.find import checkpoints, newest_common, rewind, step_of


def choose_checkpoints(
    folders: Sequence[Path], resume: str | None, *, redo: int = 0
) -> tuple[list[Path | None], list[str]]:
    """The checkpoints to go on from.

    A process that was killed while it wrote leaves some of its runs a checkpoint behind the others. They all go back to
    the newest step that each has; but more than the work between two checkpoints is not done again unasked.

    Args:
        folders: Run folders.
        resume: "auto", from the newest step of which all have a whole checkpoint; "step-N", from that one; None: from
            the beginning.
        redo: Steps between checkpoints.

    Returns:
        One for each folder, all of the same step, or None for each: begin. And what was passed over, in sentences.

    Raises:
        CheckpointError: None is whole although there are some, the one named is not, or the runs are too far apart.
    """
    if resume is None:
        return [None for _ in folders], []
    if resume != "auto":
        return list(rewind(folders, resume)), []
    common, damaged = newest_common(folders)
    if damaged and common is None:
        raise CheckpointError(f"No whole checkpoint is left: {' '.join(damaged)} Without any, the run begins anew.")
    newest = [max(map(step_of, checkpoints(folder / "checkpoints")), default=0) for folder in folders]
    back = common or 0
    if len(folders) > 1 and max(newest) - back > redo:
        stand = ", ".join(f"{folder} at step {step}" for folder, step in zip(folders, newest, strict=True))
        raise CheckpointError(
            f"These runs are not at one step ({stand}), and the last that all can go back to is {back}: go on with "
            f"each alone, as in --resume {folders[0]}, or name in --students only those that are level."
        )
    passed = [f"Skipped: {sentence}" for sentence in damaged]
    passed += [
        f"{folder} goes back from step {step} to {back}, the newest that all of them hold."
        for folder, step in zip(folders, newest, strict=True)
        if step > back and not damaged
    ]
    return [None if common is None else folder / "checkpoints" / f"step-{common}" for folder in folders], passed
