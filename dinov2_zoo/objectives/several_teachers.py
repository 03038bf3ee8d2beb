"""One student of several frozen teachers: a projector and a standardisation for each, and the mean of their losses.

Each teacher's tokens are brought to one scale before they are compared, so that none rules by its scale alone
(Ranzinger et al. 2024, "PHI-S"); `TeachersConfig` weighs them beyond that. In each step some may be left out.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dinov2_zoo.config import ObjectiveConfig, TeachersConfig
from dinov2_zoo.data.augment import generator
from dinov2_zoo.data.batch import Batch, seeds_of
from dinov2_zoo.models.branch import Branch, Crops
from dinov2_zoo.models.teacher_view import TeacherView
from dinov2_zoo.models.tokens import BranchOutput, joined
from dinov2_zoo.objectives.distillation import Distillation, Lesson
from dinov2_zoo.objectives.features import FeaturesObjective

Taught = dict[int, list[BranchOutput]]
"""What the teachers that were asked in a step said, by their numbers; the main one's is 0."""


class FurtherTeachers(nn.Module):
    """Teachers beside the main one, as one module: sharded as a whole, shared by several students as a whole.

    Args:
        branches: Each with a `TeacherView`. Frozen here, and always in evaluation mode.
    """

    def __init__(self, branches: Sequence[Branch]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.requires_grad_(False)
        self.train()

    @property
    def backbones(self) -> list[TeacherView]:
        """Of each."""
        return [branch.backbone for branch in self.branches]  # pyright: ignore[reportReturnType]

    def train(self, mode: bool = True) -> "FurtherTeachers":
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, crops: Sequence[Crops], number: int) -> list[BranchOutput]:
        """What one of them, counted from 0, says of groups of crops."""
        return self.branches[number](crops)


class SeveralTeachers(Distillation):
    """Distillation by features from several teachers. Children as of `Distillation`, with `further` and `objectives`.

    Args:
        student: With a projector for the main teacher, and one for each of the further ones.
        teacher: The main one.
        further: The others.
        config: The objective's settings, alike for each.
        names: Of all teachers, the main one first.
        settings: Weights, and how often teachers are left out.
        seed: Decides which.
    """

    def __init__(
        self,
        student: Branch,
        teacher: Branch,
        further: FurtherTeachers,
        config: ObjectiveConfig,
        *,
        names: Sequence[str],
        settings: TeachersConfig,
        seed: int,
    ) -> None:
        super().__init__(student, teacher, config)
        self.further = further
        self.objectives = nn.ModuleList(
            FeaturesObjective(config.features, theirs.embed_dim, theirs.class_dim) for theirs in further.backbones
        )
        self.names = tuple(names)
        self.weights = settings.weights or (1.0,) * len(self.names)
        self.drop = settings.drop
        self.seed = seed

    def lessons(self) -> list[Lesson]:
        """One for each teacher."""

        def further(number: int) -> Lesson:
            projectors = [branch.further[number] for branch in (self.student, self.ema)]
            return Lesson(lambda crops: self.further(crops, number), self.objectives[number], projectors)  # pyright: ignore[reportArgumentType]

        return [*super().lessons(), *(further(number) for number in range(len(self.objectives)))]

    def asked(self, step: int) -> list[int]:
        """Which teachers are asked in a step: follows from seed and step, so all processes ask the same.

        Step 0 asks all of them: on it a step's time and memory are measured before a run.
        """
        everyone = list(range(len(self.names)))
        if not self.drop or step == 0:
            return everyone
        draws = torch.rand(len(everyone) + 1, generator=generator("teachers", self.seed, step)).tolist()
        return [i for i in everyone if draws[i] >= self.drop] or [int(draws[-1] * len(everyone))]

    @torch.no_grad()
    def teach(self, batch: Batch) -> Taught:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What the teachers that this step asks say of all crops."""
        crops = self._of_stage(batch, 1).groups()
        lessons = self.lessons()
        return {number: lessons[number].teacher(crops) for number in self.asked(batch.step)}

    def compare(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, batches: Sequence[Batch], student: Sequence[Sequence[BranchOutput]], taught: Sequence[Taught]
    ) -> dict[str, Tensor]:
        """As `StepLoss.compare`: terms of each teacher asked, and "loss", their weighted mean."""
        outputs, seeds = joined(student), seeds_of(batches)
        lessons = self.lessons()
        found = {
            number: lessons[number].objective(of_teacher(outputs, number), joined([t[number] for t in taught]), seeds)
            for number in taught[0]
        }
        total = sum(self.weights[number] for number in found)
        loss = torch.stack([terms["loss"] * (self.weights[n] / total) for n, terms in found.items()]).sum()
        named = {f"{term}/{self.names[n]}": value for n, terms in found.items() for term, value in terms.items()}
        return {"loss": loss, **named}


def of_teacher(outputs: Sequence[BranchOutput], number: int) -> list[BranchOutput]:
    """A student's outputs as a run of one teacher alone would have them: projected into its space."""
    return [output if number == 0 else replace(output, projected=output.further[number - 1]) for output in outputs]
