"""Which run `--resume` means, and with which settings it was made."""

import dataclasses
import difflib
import json
import re
from pathlib import Path
from typing import Any

from dinov2_zoo.config import from_dict
from dinov2_zoo.errors import ConfigError

STEP = re.compile(r"step-\d+")


def resumed(value: str, config_class: type[Any]) -> tuple[str, dict[str, Any]]:
    """Read the value of `--resume`.

    Args:
        value: "", "auto" or "step-N": of the run that the settings name; a run folder, or a checkpoint in it.
        config_class: Of the recipe.

    Returns:
        "auto" or "step-N"; and the settings of the run where one is named, with `runs` and `name` leading to where it
        is now. Else none.

    Raises:
        ConfigError: There is no such run, or another recipe or version made it.
    """
    if value in ("", "auto") or STEP.fullmatch(value):
        return value or "auto", {}
    run, checkpoint = Path(value).expanduser(), "auto"
    if STEP.fullmatch(run.name) and run.parent.name == "checkpoints":
        run, checkpoint = run.parent.parent, run.name
    if run.name in ("", ".."):
        run = run.resolve()
    settings = _recorded(run)
    recipe = "distill" if "teacher" in settings else "fit-heads" if settings.get("freeze_backbone") else "pretrain"
    mark = "teacher" if recipe == "distill" else "self_distillation"
    if mark not in {field.name for field in dataclasses.fields(config_class)}:
        raise ConfigError(f"{run} is a run of {recipe}: continue it with `dinov2-zoo {recipe} --resume {value}`.")
    settings |= {"runs": str(run.parent), "name": run.name}
    from_dict(config_class, settings)  # says so where another version made it
    return checkpoint, settings


def _recorded(run: Path) -> dict[str, Any]:
    record = run / "config.json"
    settings = json.loads(record.read_text()).get("config") if record.is_file() else None
    if isinstance(settings, dict):
        return settings
    # The run that a folder inside it, or its bare name, was meant for; or one that is spelt like it.
    meant = [place for place in (run.parent, Path("runs") / run.name) if _is_run(place)]
    beside = {place.name: place for place in run.parent.glob("*") if _is_run(place)}
    meant += [beside[name] for name in difflib.get_close_matches(run.name, beside, n=1, cutoff=0.5)]
    hint = f"did you mean --resume {meant[0]}?" if meant else "name the folder of one, or begin one without --resume."
    raise ConfigError(f"{run} holds no run: {hint}")


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "checkpoints").is_dir()
