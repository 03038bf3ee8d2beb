"""What all objectives of a run are to training: a student's outputs, a teacher's answer, and the loss between them.

The three are apart so that a step's micro-batches can be compared as if they were one (`training.accumulation`), and so
that several students can share one answer.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dinov2_zoo.data.batch import Batch
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.tokens import BranchOutput
from dinov2_zoo.objectives.features import FeaturesObjective
from dinov2_zoo.objectives.prototypes import PrototypesObjective


class StepLoss(nn.Module, ABC):
    """Maps a batch to loss terms."""

    student: Branch
    objective: FeaturesObjective | PrototypesObjective

    def forward(self, batch: Batch, taught: Any = None) -> dict[str, Tensor]:
        """Scalar terms, each a mean over this process's images; "loss" is the one to minimise, "health/..." are not.

        Args:
            batch: Crops.
            taught: From `teach`, of this module or another with the same teachers; None: asks them now.
        """
        return self.compare([batch], [self.look(batch)], [self.teach(batch) if taught is None else taught])

    @abstractmethod
    def look(self, batch: Batch) -> list[BranchOutput]:
        """What the loss reads of the student."""

    @abstractmethod
    def teach(self, batch: Batch) -> Any:
        """What the loss reads of the teachers, without a graph."""

    @abstractmethod
    def compare(
        self, batches: Sequence[Batch], student: Sequence[Sequence[BranchOutput]], taught: Sequence[Any]
    ) -> dict[str, Tensor]:
        """As `forward`, of one batch or of a step's micro-batches as if they were one.

        Args:
            batches: The micro-batches.
            student: From `look`, one for each.
            taught: From `teach`, one for each.
        """

    @property
    def couples_images(self) -> bool:
        """Whether the loss looks at all images of a step together."""
        return self.objective.couples_images
