"""Where the time of a step goes: measured over a few steps at the start of a run, said in one sentence, then never.

The parts are told apart by waiting for the device at their borders, which slows those few steps; afterwards no hook and
no wait is left. How fast the data come is not what was waited for, since the first batches of all workers arrive
together: it is what a worker took for a batch over the number of workers.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dinov2_zoo.data.batch import Batch
from dinov2_zoo.models.tokens import tensors_in

SKIP, STEPS = 3, 5
"""Steps before, in which kernels are chosen and memory is fetched; and steps that are measured (chosen here)."""

ADVICE = {
    "data": "raise loader.workers (now {workers}), give the process more cores, or train on smaller files",
    "teacher": "store what it says once (`dinov2-zoo store-targets`) and train with --targets",
    "average": "its share is that of the global crops: lower crops.global_size",
    "student": "everything else keeps up with it; runtime.precision bf16 or more GPUs make it faster",
    "loss": "lower the number of prototypes or sampled patches, or raise the number of GPUs",
}
NAMES = {"data": "data are", "average": "averaged teacher is"}


class Bottleneck:
    """Measures the first steps of some runs that share them.

    Args:
        modules: Of the runs, with a child `student`, and a frozen `teacher` or, in pretraining, `ema`.
        device: Where they are.
        workers: Decoding processes of this process; 0: it decodes itself.
        say: Prints a sentence.
    """

    def __init__(
        self, modules: Sequence[nn.Module], device: torch.device, *, workers: int, say: Callable[[str], None]
    ) -> None:
        self._modules = modules
        self._device = device
        self._workers = workers
        self._say = say
        self._steps = 0
        self._hooks: list[Any] = []
        self._seconds: dict[str, float] = defaultdict(float)
        self._last = 0.0

    @property
    def _measuring(self) -> bool:
        return SKIP <= self._steps < SKIP + STEPS

    def begin(self) -> None:
        """A step begins."""
        if self._steps == SKIP:
            self._hooks = [hook for module in self._modules for hook in self._watch(module)]
        if self._measuring:
            self._last = self._now()

    def mark(self, part: str) -> None:
        """Everything since the mark before belongs to `part`."""
        if self._measuring:
            now = self._now()
            self._seconds[part] += now - self._last
            self._last = now

    def end(self, batches: Sequence[Batch]) -> None:
        """A step has ended; says the sentence after the last one that is measured.

        Args:
            batches: Its micro-batches.
        """
        if self._measuring:
            self.mark("update")
            self._seconds["made"] += sum(batch.seconds for batch in batches)
        self._steps += 1
        if self._steps == SKIP + STEPS:
            for hook in self._hooks:
                hook.remove()
            self._say(in_words({part: total / STEPS for part, total in self._seconds.items()}, self._workers))
            self._modules = ()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _watch(self, module: nn.Module) -> Iterator[Any]:
        """Mark the borders of teacher and student; all between them is the loss."""
        frozen = hasattr(module, "teacher")
        for name, child in module.named_children():
            if name != "student" and not name.startswith("teacher" if frozen else "ema"):
                continue
            part = "student" if name == "student" else "teacher" if frozen else "average"
            yield child.register_forward_pre_hook(lambda *_: self.mark("loss"))
            yield child.register_forward_hook(lambda _, __, output, part=part: self._passed(part, output))

    def _passed(self, part: str, output: Any) -> None:
        self.mark(part)
        # Backward, the loss ends where the last gradient reaches the network; the rest, up to the next mark, is its.
        for tensor in tensors_in(output):
            if tensor.requires_grad:
                tensor.register_hook(lambda _: self.mark("loss"))


def in_words(seconds: Mapping[str, float], workers: int) -> str:
    """The sentence.

    Args:
        seconds: Of a step: what was waited for data (`data`), what a process took to make the data (`made`), and parts:
            `teacher` or `average`, `student`, `loss`, `update`.
        workers: Decoding processes; 0: data are made in the step itself.
    """
    parts = {name: seconds[name] for name in ("teacher", "average", "student", "loss", "update") if name in seconds}
    busy = sum(parts.values())
    data = seconds["made"] / workers if workers else seconds["data"]
    shares = ", ".join(f"{name} {value / busy:.0%}" for name, value in parts.items())
    # Workers' data are made beside the step, the process's own within it.
    slowest = max(parts, key=lambda name: parts[name])
    if data > (busy if workers else parts[slowest]):
        slowest = "data"
    slowest = "student" if slowest == "update" else slowest
    subject = NAMES.get(slowest, f"{slowest} is")
    makers = f" with {workers} worker{'s' * (workers > 1)}" if workers else ""
    return (
        f"A step computes for {_brief(busy)} ({shares}); its data take {_brief(data)}{makers}. "
        f"The {subject} the bottleneck: {ADVICE[slowest].format(workers=workers)}."
    )


def _brief(seconds: float) -> str:
    number, unit = (seconds, "s") if seconds >= 1 else (1000 * seconds, "ms")
    return f"{number:.0f} {unit}" if number >= 10 else f"{number:.2g} {unit}"
