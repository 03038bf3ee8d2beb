"""What is released is never worse than an earlier average, and least of all than the start.

First weights that are fitted to a teacher are good, and a rate that is too high for a network or a folder of images
undoes them. So the average is measured now and then on images kept out of training. Where it is clearly below the
start twice in a row, the run goes back to the best average and on from there at half of the rate; at its end the best
is kept.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from dinov2_zoo.training.ema import local_shards

CHECKS = 10
"""Times that a run is measured, but not more often than every fifth step (chosen here)."""
DIP = 0.05
"""Share of the start's measurement by which an average may fall: at the height of the rate it does, and recovers once
the rate falls (chosen here, see LOG.md)."""
PATIENCE = 2
"""Measurements in a row below that, after which the rate is cut (chosen here)."""


class Guard:
    """Watches one run. It is part of the training state: a resumed run goes on as if it had not been stopped.

    Args:
        student: What learns; sharded already, if it is to be, and as it starts.
        ema: Its average, an equal copy so far.
        measure: How good the average is, the higher the better; the same number on every process.
        start: That number for the start.
        steps: Of the run.
    """

    def __init__(
        self,
        student: nn.Module,
        ema: nn.Module,
        *,
        measure: Callable[[], float],
        start: float,
        steps: int,
    ) -> None:
        self.student, self.ema, self.measure, self.start = student, ema, measure, start
        self.every = max(5, math.ceil(steps / CHECKS))
        self.steps = steps
        self._best = {name: tensor.detach().clone() for name, tensor in ema.state_dict().items()}
        # The best measurement and its step, how often in a row the last ones were too low, the rate's share.
        self._numbers = torch.tensor([start, 0, 0, 1], dtype=torch.float64)

    @property
    def rate(self) -> float:
        """Share of the learning rate that is left, 0..1."""
        return float(self._numbers[3])

    @property
    def remarks(self) -> list[str]:
        """What happened, in sentences for a report; none where training simply went well."""
        told: list[str] = []
        if self.rate < 1:
            told.append(
                f"The average fell below its start on images kept out: the learning rate was cut to {self.rate:g} of "
                "what was set."
            )
        if (step := int(self._numbers[1])) < self.steps:
            released = f"the average of step {step:,}, the best" if step else "its start: no average was better"
            told.append(f"The student is {released} on images kept out.")
        return told

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold of it."""
        return {"numbers": self._numbers} | {f"best.{name}": tensor for name, tensor in self._best.items()}

    def __call__(self, step: int, say: Callable[[str], None]) -> Mapping[str, float]:
        """Measure, where it is time, and act. Every process must call it after every step.

        Args:
            step: Finished steps.
            say: Tells the user what is done.

        Returns:
            What was measured, for the log.
        """
        if step >= self.steps or step % self.every:
            return {}
        score = self.measure()
        self._numbers[2] = 0 if score >= self.start - DIP * abs(self.start) else self._numbers[2] + 1
        if score > self._numbers[0]:
            self._keep(score, step)
        if self._numbers[2] >= PATIENCE:
            self._numbers[2], self._numbers[3] = 0, self._numbers[3] / 2
            self._go_back()
            say(
                f"Step {step:,}: on images kept out, the average has fallen below the start ({score:.3f}, "
                f"{self.start:.3f}). It goes on from the best so far, at {self.rate:g} of the learning rate."
            )
        return {"agreement": score, "rate": self.rate}

    def finish(self) -> None:
        """After the last step: the average becomes the best one that there was. Every process must call it."""
        if (score := self.measure()) > self._numbers[0]:
            self._keep(score, self.steps)
        elif self._numbers[1] < self.steps:
            self._copy(self._best, self.ema)

    def _keep(self, score: float, step: int) -> None:
        self._numbers[0], self._numbers[1] = score, step
        with torch.no_grad():
            now = self.ema.state_dict()
            for mine, theirs in zip(local_shards(self._best.values()), local_shards(now.values()), strict=True):
                mine.copy_(theirs)

    def _go_back(self) -> None:
        self._copy(self._best, self.ema)
        self._copy(self._best, self.student)

    @torch.no_grad()
    def _copy(self, tensors: Mapping[str, Tensor], network: nn.Module) -> None:
        into = network.state_dict()
        for mine, theirs in zip(local_shards(into.values()), local_shards(tensors.values()), strict=True):
            mine.copy_(theirs)
