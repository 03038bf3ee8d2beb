"""Self-distillation, the paper's pretraining: a student learns what its own average makes of other views (section 4).

The average is the teacher. It sees both global crops whole; the student sees them with patches hidden, and local crops.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from dinov2_zoo.config import PrototypesConfig, SelfDistillationConfig
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.drop_path import DropPath
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.stochastic_depth import Subset, subsets_of
from dinov2_zoo.models.tokens import BranchOutput, joined
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.objectives.health import health
from dinov2_zoo.objectives.prototypes import PrototypesObjective
from dinov2_zoo.objectives.step_loss import StepLoss


class SelfDistillation(StepLoss):
    """Maps a batch to loss terms. Children: `student` and `ema`, its average and teacher (`Branch`), and `objective`.

    Args:
        student: A backbone with a head for class tokens, and one for patch tokens or a tied one.
        losses: Weights and temperatures of the three losses.
        config: Temperature warm-up, stochastic depth.
    """

    def __init__(self, student: Branch, losses: PrototypesConfig, config: SelfDistillationConfig) -> None:
        super().__init__()
        assert isinstance(student.backbone, VisionTransformer)
        self.losses = losses
        self.config = config
        self.student = student
        self.ema = copy.deepcopy(student).requires_grad_(False)
        dino, ibot = student.heads
        if dino is None or ibot is None:
            raise ConfigError("Self-distillation needs a head for class tokens and one for patch tokens: give both.")
        self.objective = PrototypesObjective(losses, dino_prototypes=dino.count, ibot_prototypes=ibot.count)
        self.train()

    def train(self, mode: bool = True) -> "SelfDistillation":
        """Set the student's mode; the average stays in evaluation mode."""
        super().train(mode)
        self.ema.eval()
        return self

    def teacher_temperature(self, step: int) -> float:
        """Temperature of the teacher's softmax at an optimizer step."""
        warmup, last = self.config.temperature_warmup_steps, self.losses.teacher_temperature
        done = min(1.0, step / warmup) if warmup else 1.0
        return self.config.first_temperature + (last - self.config.first_temperature) * done

    def look(self, batch: Batch) -> list[BranchOutput]:
        """The student's outputs."""
        assert batch.positions is not None, "the loader draws masks when it is given their settings"
        crops, positions = batch.groups(), batch.positions
        found = self.student(crops, masks=batch.masks, subsets=self._subsets(batch, crops), positions=positions)
        return [output.without_patches() for output in found]

    @torch.no_grad()
    def teach(self, batch: Batch) -> list[BranchOutput]:
        """The average's outputs for the global crops, at the patches that are hidden from the student."""
        found = self.ema([batch.global_crops], positions=batch.positions)
        return [output.without_patches() for output in found]

    def compare(
        self,
        batches: Sequence[Batch],
        student: Sequence[Sequence[BranchOutput]],
        taught: Sequence[Sequence[BranchOutput]],
    ) -> dict[str, Tensor]:
        """As `StepLoss.compare`; health is measured on batches of logged steps only."""
        temperature, teacher = self.teacher_temperature(batches[0].step), joined(taught)
        weights = torch.cat([batch.weights for batch in batches if batch.weights is not None]) / len(batches)
        terms = self.objective(joined(student), teacher, teacher_temperature=temperature, patch_weights=weights)
        if not batches[0].logged:
            return terms
        seen = teacher[0]
        assert seen.dino is not None
        metrics = health(
            seen.tokens.class_token[0], seen.dino.bottleneck[0], seen.dino.prototypes, temperature=temperature
        )
        return terms | {f"health/{name}": metric for name, metric in metrics.items()}

    def drop_path(self, seed: int) -> DropPath | None:
        """What the loader is to draw for the student's stochastic depth; None: it has none.

        Args:
            seed: Of the run.
        """
        backbone, rate = self.student.backbone, self.config.drop_path
        assert isinstance(backbone, VisionTransformer)
        return DropPath(rate, len(backbone.blocks), seed) if rate else None

    def _subsets(self, batch: Batch, crops: list[Tensor]) -> Sequence[tuple[Subset, Subset]] | None:
        """Which sequences pass through each of the student's blocks."""
        if not (self.training and self.config.drop_path):
            return None
        assert batch.drop_path is not None, "the loader draws them when it is given `drop_path`"
        backbone = self.student.backbone
        assert isinstance(backbone, VisionTransformer)
        return subsets_of(batch.drop_path, backbone.packing([group.flatten(0, 1) for group in crops]))
