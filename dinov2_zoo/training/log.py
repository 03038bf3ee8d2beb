"""The log of a run: every metric in metrics.jsonl and the trackers, a few on a progress bar or in plain lines."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from dinov2_zoo.config import LogConfig
from dinov2_zoo.data.batch import Skipped
from dinov2_zoo.data.skips import list_skipped
from dinov2_zoo.files import atomic_write
from dinov2_zoo.progress import duration, progress_bar, the_only_bar

# Seconds between lines where there is no terminal: often enough that a watcher of a CI log sees life.
PLAIN_EVERY = 20.0


class RunLog:
    """The log of one run. Only the main process writes metrics; every process may report skipped images.

    Within its context a terminal shows a bar.

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
        self.start = start
        self._console = console or Console(stderr=True)
        self._said = -math.inf
        self._bar: tuple[Progress, TaskID] | None = None
        self._open = ExitStack()
        if main and run_dir is not None:
            run_dir.mkdir(parents=True, exist_ok=True)
            truncate_metrics(run_dir / "metrics.jsonl", start)

    def __enter__(self) -> "RunLog":
        wanted = self.main and self.config.progress and self._console.is_interactive
        if wanted and self._open.enter_context(the_only_bar()):
            bar = progress_bar(self._console, total=self.steps)
            self._bar = bar, bar.add_task("Training", total=self.steps, completed=self.start, numbers="")
            self._open.enter_context(bar)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self._bar = None

    def due(self, step: int) -> bool:
        """True when a line should follow step `step` (counted from 1): every so often, and at the very end."""
        return step % max(1, self.config.every) == 0 or step == self.steps

    def tick(self, step: int) -> None:
        """Note that a step has finished."""
        if self._bar is not None:
            bar, task = self._bar
            bar.update(task, completed=step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a line of metrics: to metrics.jsonl, the trackers, and a few to the screen. Main process only."""
        if not self.main:
            return
        if self.run_dir is not None:
            with (self.run_dir / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")
        if self._track is not None and (trouble := self._track(metrics, step)):
            self.say(trouble)
        words = _headline(metrics)
        if not self.config.progress or not words:
            return
        if self._bar is not None:
            bar, task = self._bar
            bar.update(task, numbers="  ".join(words))  # the bar has its own count and time
        elif time.monotonic() - self._said >= PLAIN_EVERY or step == self.steps:
            self._said = time.monotonic()
            left = [f"{duration(3600 * metrics['hours_left'])} left"] if metrics.get("hours_left") else []
            self.say("  ".join([f"step {step}/{self.steps}", *words, *left]))

    def skip(self, images: Sequence[Skipped]) -> None:
        """Count images that could not be decoded and list them in skipped.jsonl."""
        self.skipped += len(images)
        if self.run_dir is not None:
            list_skipped(self.run_dir, images)

    def say(self, text: str) -> None:
        """Print a sentence on the main process, above the progress bar if there is one."""
        if self.main:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _headline(metrics: Mapping[str, float]) -> list[str]:
    """The few metrics that fit on a line of 80 columns beside the step and the time left."""
    words: list[str] = []
    if "loss" in metrics:
        loss = metrics["loss"]
        words.append(f"loss {loss:.3f}" if loss >= 0.1 else f"loss {loss:.3g}")
    if "images_per_second" in metrics:
        rate = metrics["images_per_second"]
        words.append(f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s")
    return words


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
