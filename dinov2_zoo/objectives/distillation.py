"""A frozen teacher, a student that learns from it, and the student's average that is released: one module.

The average never enters a loss (paper, section 5; maintainers). Nothing is masked and no block is dropped.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dinov2_zoo.config import FinishConfig, ObjectiveConfig
from dinov2_zoo.data.batch import Batch, seeds_of
from dinov2_zoo.data.finishing import FinishingStage, resized
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.heads import FeatureProjector
from dinov2_zoo.models.students import TimmStudent
from dinov2_zoo.models.teacher_view import TeacherView
from dinov2_zoo.models.tokens import BranchOutput, joined
from dinov2_zoo.objectives.features import FeaturesObjective
from dinov2_zoo.objectives.prototypes import PrototypesObjective
from dinov2_zoo.objectives.step_loss import StepLoss


@dataclass(frozen=True)
class Lesson:
    """What a student learns from one teacher by features."""

    teacher: Callable[[list[Tensor]], list[BranchOutput]]
    objective: FeaturesObjective
    projectors: Sequence[FeatureProjector]
    """The student's into this teacher's space, and the average's."""


class Distillation(StepLoss):
    """Maps a batch to loss terms. Children: `student`, `ema`, `teacher` (each a `Branch`), `objective`.

    Args:
        student: What learns; with a projector (features) or both heads (prototypes).
        teacher: Frozen here; with both heads for prototypes.
        config: Which objective, and its settings.

    Raises:
        ConfigError: The branches lack what the objective needs, or do not fit each other.
    """

    def __init__(self, student: Branch, teacher: Branch, config: ObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        self.stage: FinishingStage | None = None
        self.student = student
        self.ema = copy.deepcopy(student).requires_grad_(False)
        self.teacher = teacher.requires_grad_(False)
        if config.kind == "features":
            if student.projector is None:
                raise ConfigError("Distillation by features needs a student with a projector: give its Branch one.")
            theirs = teacher.backbone
            self.objective = FeaturesObjective(config.features, theirs.embed_dim, theirs.class_dim)
        else:
            dino, ibot = _check_heads(student, teacher)
            self.objective = PrototypesObjective(config.prototypes, dino_prototypes=dino, ibot_prototypes=ibot)
        self.train()

    def train(self, mode: bool = True) -> "Distillation":
        """Set the student's mode; teacher and average stay in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        self.ema.eval()
        return self

    def look(self, batch: Batch) -> list[BranchOutput]:
        """The student's outputs, of all crops."""
        if isinstance(self.objective, FeaturesObjective):
            return self.student(self._of_stage(batch, 0).groups())
        assert batch.positions is not None or self.config.patch_share == 1, "the loader draws positions"
        found = self.student(batch.groups(), positions=batch.positions)
        return [output.without_patches() for output in found]

    @torch.no_grad()
    def teach(self, batch: Batch) -> list[BranchOutput]:
        """What the teacher says of a batch: of all crops (features), or of the global ones (prototypes).

        Where it was stored (`Batch.targets`), the teacher is a decoder, and its heads where the objective has some.
        """
        if isinstance(self.objective, FeaturesObjective):
            return self.teacher(self._of_stage(batch, 1).for_teacher())
        found = self.teacher(batch.for_teacher()[:1], positions=batch.positions)
        return [output.without_patches() for output in found]

    def compare(
        self,
        batches: Sequence[Batch],
        student: Sequence[Sequence[BranchOutput]],
        taught: Sequence[Sequence[BranchOutput]],
    ) -> dict[str, Tensor]:
        """As `StepLoss.compare`."""
        outputs = joined(student), joined(taught)
        if isinstance(self.objective, FeaturesObjective):
            return self.objective(*outputs, seeds_of(batches))
        return self.objective(*outputs, teacher_temperature=self.config.prototypes.teacher_temperature)

    def lessons(self) -> list[Lesson]:
        """Of kind "features": one, or one for each of several teachers, the main one's first."""
        assert isinstance(self.objective, FeaturesObjective)
        projectors = [branch.projector for branch in (self.student, self.ema) if branch.projector is not None]
        return [Lesson(self.teacher, self.objective, projectors)]

    @property
    def patch_size(self) -> int:
        """Side of the teacher's patches, pixels."""
        assert not isinstance(self.teacher.backbone, TimmStudent | TeacherView)
        return self.teacher.backbone.patch_size

    def finishing(self, config: FinishConfig, global_size: int, *, steps: int, seed: int) -> FinishingStage | None:
        """The finishing stage of a run of `steps` steps, if it has one; to be put into `stage`."""
        return FinishingStage.of(config, global_size=global_size, patch=self.patch_size, steps=steps, seed=seed)

    def _of_stage(self, batch: Batch, whose: int) -> Batch:
        """The batch at the size that the student (0) or the teacher (1) has at its step."""
        sides = None if self.stage is None else self.stage.drawn(batch.step)
        return batch if sides is None else resized(batch, sides[whose])

    def reset_average(self) -> None:
        """Make the average the student as it is now; before sharding, once the student has its first weights."""
        self.ema.load_state_dict(self.student.state_dict())


def _check_heads(student: Branch, teacher: Branch) -> tuple[int, int]:
    """K of both heads.

    Raises:
        ConfigError: A head is missing, K differs, or the grids differ.
    """
    counts: list[int] = []
    for name, mine, theirs in (("dino", student.dino, teacher.dino), ("ibot", student.ibot, teacher.ibot)):
        if mine is None or theirs is None:
            raise ConfigError(
                "Distillation by prototypes needs heads on both sides, and Meta published none: pass the heads of a "
                "teacher you trained with --heads FILE, or use --objective.kind features."
            )
        k, wanted = mine.count, theirs.count
        if k != wanted:
            raise ConfigError(
                f"The student's {name} head has {k} prototypes, its teacher's {wanted}: give both {wanted}."
            )
        counts.append(k)
    patches = [getattr(branch.backbone, "patch_size", None) for branch in (student, teacher)]
    if patches[0] != patches[1]:
        raise ConfigError(
            f"Patches of {patches[0]} and {patches[1]} pixels give different grids, and prototypes are matched patch "
            "by patch: take a student with the teacher's patch, or --objective.kind features."
        )
    return counts[0], counts[1]
