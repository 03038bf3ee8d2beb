"""How a run is doing, read from its folder alone: while it trains, after it has stopped, from any machine."""

import datetime
import json
import time
from pathlib import Path
from typing import Any

from dinov2_zoo.errors import ConfigError
from dinov2_zoo.reports.curves import read_metrics
from dinov2_zoo.training.checkpoints.find import checkpoints
from dinov2_zoo.training.run_folder import holder


def status(run: Path) -> dict[str, str]:
    """What a person asks of a run, as label and words.

    Args:
        run: A run folder, such as runs/demo.

    Raises:
        ConfigError: It holds no run.
        DataError: Its metrics.jsonl is damaged.
    """
    record = run / "config.json"
    if not record.is_file():
        raise ConfigError(f"{run} holds no run: name a folder that a recipe has written, such as runs/demo.")
    config: dict[str, Any] = json.loads(record.read_text())["config"]
    steps = int(config["optim"]["steps"])
    series = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else {}
    reached = max((points[-1][0] for points in series.values()), default=0)
    at_work = holder(run)
    rows = {"run": str(run), "state": _state(run, at_work, reached, steps)}
    rows["step"] = f"{reached:,} of {steps:,} ({reached / steps:.0%})"
    last = {name: points[-1][1] for name, points in series.items()}
    if at_work and "hours_left" in last:
        rows["time left"] = str(datetime.timedelta(seconds=round(3600 * last["hours_left"])))
    if "images_per_second" in last:
        rows["speed"] = f"{last['images_per_second']:.4g} images/s, {last['data_wait']:.0%} of it waiting for data"
    if losses := series.get("loss"):
        tenth = losses[-max(1, len(losses) // 10) :]
        rows["loss"] = f"{losses[0][1]:.4g} at first, {sum(v for _, v in tenth) / len(tenth):.4g} lately"
    for name, points in series.items():
        if name.startswith(("heldout/", "health/")):
            rows[name.replace("/", ", ")] = f"{points[-1][1]:.4g} at step {points[-1][0]:,}"
    rows["skipped images"] = f"{last.get('skipped', 0):.0f}" + (" (skipped.jsonl)" if last.get("skipped") else "")
    if bad := len(list((run / "bad_batches").glob("*.json"))):
        rows["bad steps"] = f"{bad} (bad_batches/)"
    if saved := checkpoints(run / "checkpoints"):
        size = sum(file.stat().st_size for file in saved[-1].iterdir()) / 2**20
        rows["checkpoints"] = f"{len(saved)}, the newest {saved[-1].name}, {_ago(saved[-1])}, {size:,.0f} MiB"
    else:
        rows["checkpoints"] = "none yet"
    return rows


def _state(run: Path, at_work: str | None, reached: int, steps: int) -> str:
    if at_work:
        metrics = run / "metrics.jsonl"
        return f"training: {at_work}" + (f", last line {_ago(metrics)}" if metrics.exists() else "")
    if (run / "measured.json").exists():
        return "finished"
    if reached >= steps:
        return "trained, not measured yet: if no process is at it, --resume finishes the run"
    return "not running: the command that began it goes on with --resume"


def _ago(path: Path) -> str:
    return f"{datetime.timedelta(seconds=max(0, round(time.time() - path.stat().st_mtime)))} ago"
