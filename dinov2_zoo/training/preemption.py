"""Being told to stop: SIGTERM and SLURM's warning from a cluster, Ctrl-C from a person."""

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from dinov2_zoo.errors import Preempted

# What asks a run to save itself and go. SLURM sends the signal of `#SBATCH --signal=USR1@120` some time before the end.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))


class StopRequest:
    """Within its context a signal no longer kills: it makes the object true, and the loop stops after its step.

    A second Ctrl-C stops at once. `accelerate launch` passes no signal on to a single process and leaves it running
    alone: a process whose launcher has gone counts as asked to stop, too.
    """

    def __init__(self) -> None:
        self.reason = ""
        """What asked, for a sentence; empty as long as nothing has."""
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
        self._launcher = os.getppid() if "ACCELERATE_MIXED_PRECISION" in os.environ else None

    def __bool__(self) -> bool:
        if not self.reason and self._launcher is not None and os.getppid() != self._launcher:
            self.reason = "accelerate launch has gone"
        return bool(self.reason)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason:
            raise KeyboardInterrupt
        self.reason = f"{signal.Signals(number).name} received"

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # On its way out after saving, a process must not be killed by a launcher that saw another one leave before it:
        # srun would report the signal instead of the exit code.
        leaving = kind is not None and issubclass(kind, Preempted)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if leaving else handler)
