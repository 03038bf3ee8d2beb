"""How well a student stands in for each of several teachers, on images kept out."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.evaluation.distilled.agreement import Agreement, agreement
from dinov2_zoo.evaluation.distilled.branch_encoder import BATCH, BranchEncoder
from dinov2_zoo.models.tokens import Tokens
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.objectives.several_teachers import SeveralTeachers, of_teacher


class FurtherAgreement:
    """Measures the average against the teachers beside the main one. Every process must call it.

    Args:
        images: Kept out of training, prepared; the same on every process. None: nothing is measured.
        device: Where the module is.
        autocast: Precision of the forward passes.
    """

    def __init__(
        self,
        images: Float[Tensor, "B 3 S S"] | None,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.images, self.device, self.autocast = images, device, autocast
        self.teachers: list[Tokens] = []

    @torch.no_grad()
    def __call__(self, distillation: Distillation) -> dict[str, Agreement]:
        """By the teachers' names; empty where there is one teacher. Each is asked once: they are frozen."""
        if self.images is None or not isinstance(distillation, SeveralTeachers):
            return {}
        parts = [part[None].to(self.device) for part in self.images.split(BATCH)]
        lessons = distillation.lessons()[1:]
        if not self.teachers:
            with self.autocast():
                self.teachers = [Tokens.cat([one.teacher([part])[0].tokens[0] for part in parts]) for one in lessons]
        encode = BranchEncoder(distillation.ema, self.device, self.autocast)
        outputs = [encode.output(part[0]) for part in parts]
        own = Tokens.cat([output.tokens[0] for output in outputs])
        found: dict[str, Agreement] = {}
        for number, lesson in enumerate(lessons, 1):
            spaces = [output.projected[0] for output in of_teacher(outputs, number) if output.projected is not None]
            projected = lesson.objective.in_teacher_space(Tokens.cat(spaces))
            found[distillation.names[number]] = agreement(own, projected, self.teachers[number - 1])
        return found


def mean_score(distillation: Distillation, found: Sequence[Agreement]) -> float:
    """Scores of all teachers as one, weighted as their losses are."""
    weights = distillation.weights if isinstance(distillation, SeveralTeachers) else (1.0,)
    total = sum(weight * each.score for weight, each in zip(weights, found, strict=True))
    return total / sum(weights)
