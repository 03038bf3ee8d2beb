"""The checkpoints that a run has left: which there are, and which of them can be trusted."""

import shutil
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
    skipped: list[str] = []
    for folder in reversed(checkpoints(run_dir / "checkpoints")):
        try:
            check_files(folder)
        except CheckpointError as error:
            skipped.append(str(error))
        else:
            return folder, skipped
    return None, skipped


def rewind(run_dir: Path, name: str) -> Path:
    """The checkpoint "step-N" of a run, to go on from; later ones are set aside as "discarded-step-M".

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged.
    """
    folder = run_dir / "checkpoints" / name
    have = checkpoints(folder.parent)
    if folder not in have:
        names = ", ".join(f.name for f in have) or "none"
        raise CheckpointError(f"{run_dir} has no checkpoint {name} (there are: {names}): name one of these, or auto.")
    check_files(folder)
    for later in have[have.index(folder) + 1 :]:
        aside = later.with_name(f"discarded-{later.name}")
        shutil.rmtree(aside, ignore_errors=True)
        later.rename(aside)
    return folder
