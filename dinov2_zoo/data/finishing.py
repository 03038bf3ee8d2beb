"""The finishing stage: the last steps see images of several sizes, student and teacher each its own (EUPE, 2026).

A network that was trained at one size is worse at others, most of all in what its patches say. The stage cures that at
little cost, since it is short. The sizes follow from (seed, step) alone: they are the same on all processes, in all
micro-batches of a step and after a restart.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from dinov2_zoo.config import FinishConfig
from dinov2_zoo.data.augment import generator
from dinov2_zoo.data.batch import Batch


@dataclass(frozen=True)
class FinishingStage:
    """Which sides the global crops have, in which steps; local crops stay as they are."""

    first: int
    """The step that it begins with."""
    sides: tuple[int, ...]
    """Sides to draw from, pixels."""
    seed: int
    """Of the run."""

    @classmethod
    def of(
        cls, config: FinishConfig, *, global_size: int, patch: int, steps: int, seed: int
    ) -> "FinishingStage | None":
        """The stage of a run, or None where it has none.

        Args:
            config: Share of the steps, and sizes.
            global_size: Side of the global crops before the stage, pixels.
            patch: Side of a patch, pixels.
            steps: Of the whole run.
            seed: Of the run.
        """
        if not config.share:
            return None
        return cls(steps - max(1, round(config.share * steps)), config.sides(global_size, patch), seed)

    def drawn(self, step: int) -> tuple[int, int] | None:
        """The student's side and the teacher's at a step; None before the stage."""
        if step < self.first:
            return None
        student, teacher = torch.randint(len(self.sides), (2,), generator=generator("finish", self.seed, step)).tolist()
        return self.sides[student], self.sides[teacher]

    def cut(self, step: int, global_size: int) -> int:
        """Side at which the loader cuts global crops at a step: the largest one in the stage, or they would be blurred.

        Args:
            step: Optimizer step.
            global_size: Side before the stage.
        """
        return global_size if step < self.first else max(self.sides)


def resized(batch: Batch, side: int) -> Batch:
    """The same batch with global crops of another side, pixels; bicubic with antialiasing, on the batch's device."""
    crops = batch.global_crops
    if crops.shape[-1] == side:
        return batch
    smaller = F.interpolate(crops.flatten(0, 1), size=(side, side), mode="bicubic", antialias=True)
    return replace(batch, global_crops=smaller.unflatten(0, crops.shape[:2]))
