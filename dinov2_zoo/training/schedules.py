"""Learning rate, weight decay and EMA momentum as pure functions of the step: nothing to save, nothing to restore."""

import math
from dataclasses import dataclass

from torch.optim import Optimizer

from dinov2_zoo.config import OptimConfig


@dataclass(frozen=True)
class Schedule:
    """A linear warm-up from 0 to `first`, then half a cosine to `last`, which holds ever after."""

    first: float
    last: float
    steps: int
    """Steps of the whole schedule, warm-up included."""
    warmup: int = 0

    def __call__(self, step: int) -> float:
        """Value for the update after `step` finished ones (0: the first update)."""
        if step < self.warmup:
            return self.first * step / self.warmup
        if step >= self.steps:
            return self.last
        progress = (step - self.warmup) / (self.steps - self.warmup)
        return self.last + (self.first - self.last) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Schedules:
    """Everything that moves with the step (official: stepped once per update, wd and momentum without warm-up)."""

    lr: Schedule
    weight_decay: Schedule
    momentum: Schedule
    freeze_last_layer_steps: int

    @staticmethod
    def of(config: OptimConfig, global_batch: int) -> "Schedules":
        """Schedules of a run whose update sees `global_batch` images over all processes and micro-batches."""
        config = config.settled()
        return Schedules(
            lr=Schedule(config.peak_lr(global_batch), config.final_lr, config.steps, config.warmup_steps),
            weight_decay=Schedule(*config.weight_decay, config.steps),
            momentum=Schedule(*config.ema_momentum, config.steps),
            freeze_last_layer_steps=config.freeze_last_layer_steps,
        )

    def apply(self, optimizer: Optimizer, step: int, *, share: float = 1.0) -> None:
        """Set every group's lr, a share of what is scheduled, and weight decay; groups are `parameter_groups`'.

        While the last layer is frozen its lr is 0, which also stops its weight decay: AdamW scales that by lr.
        """
        lr, weight_decay = share * self.lr(step), self.weight_decay(step)
        for group in optimizer.param_groups:
            frozen = group["is_last_layer"] and step < self.freeze_last_layer_steps
            group["lr"] = 0.0 if frozen else lr * group["lr_multiplier"]
            group["weight_decay"] = weight_decay * group["wd_multiplier"]
