"""What a run says while it trains: metrics.jsonl for machines, a progress bar or plain lines for people, trackers."""

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dinov2_zoo.config import LogConfig
from dinov2_zoo.data.batch import Skipped
from dinov2_zoo.files import atomic_write

# Seconds between lines where there is no terminal: often enough that a watcher of a CI log sees life.
PLAIN_EVERY = 20.0


class RunLog:
    """The log of one run. Only the main process writes numbers; every process may report skipped images.

    Args:
        run_dir: The run folder, or None to write no files.
        config: How often, and whether to show progress.
        steps: Steps of the whole run.
        start: Finished steps; lines of metrics.jsonl beyond it are dropped, for they are about to be made again.
        main: True on rank 0.
        track: Receives (values, step) of every line, may return a sentence to print: `Trackers.log`.
        console: Where people look; default stderr.
    """

    def __init__(
        self,
        run_dir: Path | None,
        config: LogConfig,
        *,
        steps: int,
        start: int = 0,
        main: bool = True,
        track: Callable[[Mapping[str, float], int], str | None] | None = None,
        console: Console | None = None,
    ):
        self.run_dir = run_dir
        self.config = config
        self.steps = steps
        self.main = main
        self.skipped = 0
        self._track = track
        self._durations: list[float] = []
        self._console = console or Console(stderr=True, soft_wrap=True)
        self._said = -math.inf
        self._bar: Progress | None = None
        if main and run_dir is not None:
            run_dir.mkdir(parents=True, exist_ok=True)
            truncate_metrics(run_dir / "metrics.jsonl", start)
        if main and config.progress and self._console.is_terminal:
            columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
            self._bar = Progress(*columns, TextColumn("{task.fields[numbers]}"), console=self._console)
            self._task = self._bar.add_task("training", total=steps, completed=start, numbers="")
            self._bar.start()

    def due(self, step: int) -> bool:
        """True when a line should follow step `step` (counted from 1): every so often, and at the very end."""
        return step % max(1, self.config.every) == 0 or step == self.steps

    def tick(self, step: int, seconds: float) -> None:
        """Note that a step has finished and how long it took."""
        self._durations.append(seconds)
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def step_seconds(self) -> float:
        """Median duration of a step since the last call, seconds: hiccups of a disk do not move it."""
        median = statistics.median(self._durations) if self._durations else math.nan
        self._durations.clear()
        return median

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a line of numbers: to metrics.jsonl, the trackers, and the screen. Nothing on other processes."""
        if not self.main:
            return
        if self.run_dir is not None:
            with (self.run_dir / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        if self._track is not None and (trouble := self._track(values, step)):
            self.say(trouble)
        if not self.config.progress:
            return
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.update(self._task, numbers=numbers)
        elif time.monotonic() - self._said >= PLAIN_EVERY or step == self.steps:
            self._said = time.monotonic()
            self.say(f"step {step}/{self.steps}  {numbers}")

    def skip(self, images: Sequence[Skipped]) -> None:
        """Count images that could not be decoded and list them in skipped.jsonl."""
        if not images:
            return
        self.skipped += len(images)
        if self.run_dir is not None:
            # Appended in one call, so that lines of several processes do not mix.
            lines = [json.dumps({"id": s.sample_id, "name": s.name, "reason": s.reason}) + "\n" for s in images]
            with (self.run_dir / "skipped.jsonl").open("a") as file:
                file.write("".join(lines))

    def say(self, text: str) -> None:
        """Print a sentence on the main process, above the progress bar if there is one."""
        if self.main:
            self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Take the progress bar down."""
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def truncate_metrics(path: Path, step: int) -> None:
    """Drop lines beyond `step` and a half-written last line, so that a resumed run's log has each step once."""
    if not path.exists():
        return
    kept: list[str] = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            break  # the process died while it wrote this line
    with atomic_write(path) as partial:
        partial.write_text("".join(kept))
