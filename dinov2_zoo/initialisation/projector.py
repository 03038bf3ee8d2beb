"""First weights of the projector: the ridge regression of the teacher's tokens on the student's."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.data.batch import Batch
from dinov2_zoo.initialisation.ridge import LinearMap, Moments, Network, fit_maps
from dinov2_zoo.models.heads import ProjectorMLP
from dinov2_zoo.models.tokens import BranchOutput
from dinov2_zoo.objectives.distillation import Distillation, Lesson
from dinov2_zoo.objectives.standardiser import Standardiser


@torch.no_grad()
def fit_projector(
    module: Distillation,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    lesson: Lesson | None = None,
) -> None:
    """Give distillation by features its statistics and its projector's first weights, in place and before sharding.

    Args:
        module: With a `FeaturesObjective`.
        batches: This process's share of some training images.
        device: Where the module is.
        autocast: Precision of the forward passes.
        lesson: For which of several teachers; default: for the main one.
    """
    lesson = lesson or module.lessons()[0]
    watched = _Watched(lesson.teacher)
    teacher = watched if lesson.objective.config.standardise == "phi-s" else lesson.teacher
    # The average is an equal copy of the student so far, and in evaluation mode.
    with autocast():
        maps = fit_maps(module.ema, teacher, batches, device=device)
    for kind in ("class_token", "patches"):
        standardiser: Standardiser = getattr(lesson.objective, kind)
        found: LinearMap = getattr(maps, kind)
        covariance = watched.covariance(kind) if teacher is watched else found.deviation.square().diag()
        standardiser.set(found.mean, covariance)
        # At the teacher's scale, and from there into the standardiser's.
        weight, bias = found.weight * found.deviation[:, None], found.bias * found.deviation + found.mean
        weight, bias = standardiser.into(weight, bias)
        for projector in lesson.projectors:
            layer: nn.Linear | ProjectorMLP = getattr(projector, kind)
            if isinstance(layer, ProjectorMLP):
                layer.become_linear(weight, bias)
            else:
                replace(found, weight=weight, bias=bias).put_into(layer, scaled=False)


class _Watched:
    """A teacher that keeps the second moments of what it says."""

    def __init__(self, teacher: Network) -> None:
        self.teacher = teacher
        self.moments: dict[str, Moments] = {}

    def __call__(self, crops: list[Tensor]) -> list[BranchOutput]:
        output = self.teacher(crops)
        for kind in ("class_token", "patches"):
            tokens: Tensor = getattr(output[0].tokens, kind)
            rows = tokens.flatten(0, -2)
            total = self.moments.setdefault(kind, Moments(rows.shape[1], 0, rows.device))
            total.add_alone(rows)
        return output

    def covariance(self, kind: str) -> Float[Tensor, "D D"]:
        """Over the tokens of all processes, float64. Every process must call it."""
        return self.moments[kind].covariance()[1]
