"""The checkpoints that a run has left: which there are, and which of them can be trusted."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.training.checkpoints.manifest import MANIFEST, check_files


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints in `runs/x/checkpoints`, oldest first; they may have been damaged since."""
    found = [f for f in folder.glob("step-*") if (f / MANIFEST).exists() and f.name.removeprefix("step-").isdigit()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """N of a folder step-N."""
    return int(folder.name.removeprefix("step-"))


def newest_whole(run_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run whose every byte is as it was written.

    Returns:
        Its folder, None where there is no whole one; and for each newer one what is wrong with it.
    """
    step, skipped = newest_common([run_dir])
    return (None if step is None else run_dir / "checkpoints" / f"step-{step}"), skipped


def newest_common(run_dirs: Sequence[Path]) -> tuple[int | None, list[str]]:
    """The last step of which each of some runs has a checkpoint whose every byte is as it was written.

    Returns:
        The step, None where there is none; and for each later checkpoint that is damaged what is wrong with it.
    """
    skipped: list[str] = []
    found = [{step_of(folder) for folder in checkpoints(run / "checkpoints")} for run in run_dirs]
    for step in sorted(set.intersection(*found), reverse=True):
        try:
            for run in run_dirs:
                check_files(run / "checkpoints" / f"step-{step}")
        except CheckpointError as error:
            skipped.append(str(error))
        else:
            return step, skipped
    return None, skipped


def rewind(run_dirs: Sequence[Path], name: str) -> list[Path]:
    """The checkpoint "step-N" of each of some runs, to go on from; later ones are set aside as "discarded-step-M".

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged; then nothing is set aside.
    """
    found = [run / "checkpoints" / name for run in run_dirs]
    have = [checkpoints(folder.parent) for folder in found]
    for run, folder, there in zip(run_dirs, found, have, strict=True):
        if folder not in there:
            names = ", ".join(f.name for f in there) or "none"
            raise CheckpointError(f"{run} has no checkpoint {name} (there are: {names}): name one of these, or auto.")
        check_files(folder)
    for folder, there in zip(found, have, strict=True):
        for later in there[there.index(folder) + 1 :]:
            aside = later.with_name(f"discarded-{later.name}")
            shutil.rmtree(aside, ignore_errors=True)
            later.rename(aside)
    return found
