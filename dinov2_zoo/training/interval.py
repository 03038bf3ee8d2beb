"""The steps between two lines of the log: means of their losses, their pace, and what they waited for."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dinov2_zoo.training.runtime import Runtime


class Interval:
    """Collects what a line of the log tells of its steps. Begin a new one after each line."""

    def __init__(self) -> None:
        # On the device, for reading them every step would make the host wait; in float64, for bf16 stops counting ones
        # at 256. (CPU and CUDA have it, and a Runtime takes no other device.)
        self._totals: dict[str, Tensor] = {}
        self._updates: Counter[str] = Counter()  # of each term: one teacher of several may be left out of a step
        self._durations: list[float] = []
        self._waited = 0.0

    def add_terms(self, micro_batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Note the loss terms of an update: one mapping per micro-batch, or one of all together."""
        for terms in micro_batches:
            for name, term in terms.items():
                self._totals[name] = self._totals.get(name, 0) + term.double() / len(micro_batches)
        self._updates.update(micro_batches[0].keys())

    def add_step(self, seconds: float, waited: float = 0.0) -> None:
        """Note how long a step took, one that was left out too, and how long of that it waited for its batches."""
        self._durations.append(seconds)
        self._waited += waited

    def means(self, runtime: Runtime) -> dict[str, float]:
        """Each term's mean over the updates and over processes; empty where every step was left out."""
        return runtime.mean({name: total / self._updates[name] for name, total in self._totals.items()})

    def pace(self, images: int, steps_left: int) -> dict[str, float]:
        """Speed: images_per_second, hours_left, and data_wait, the share of the time spent waiting for batches.

        Args:
            images: Images of one step, over all processes.
            steps_left: Steps still to do.
        """
        seconds = statistics.median(self._durations)  # a disk's hiccups do not move it
        return {
            "images_per_second": images / seconds,
            "hours_left": steps_left * seconds / 3600,
            "data_wait": self._waited / len(self._durations) / seconds,
        }


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most that tensors have taken on a GPU so far, as memory_gib; empty on a CPU."""
    return {"memory_gib": torch.cuda.max_memory_allocated() / 2**30} if device.type == "cuda" else {}
