"""Distillation by features, head-free: the teacher's tokens themselves, through a linear projector.

A teacher's channels differ in scale by orders of magnitude, so its tokens are standardised per channel first, class and
patch tokens apart (after UNIC and RADIO); then cosine and smooth-L1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2_zoo.config import FeaturesConfig
from dinov2_zoo.models.grid import resample_grid

Outputs = list[dict[str, Tensor]]


class FeaturesObjective(nn.Module):
    """Class-token and patch-token terms over all crops, on outputs of `Branch` for the same crops.

    The teacher is frozen, so its statistics are numbers, not something to track: `closed_form.fit_maps` measures them
    once before the first step.

    Args:
        config: Weights.
        teacher_dim: Width of the teacher's tokens.
    """

    class_mean: Tensor
    class_deviation: Tensor
    patch_mean: Tensor
    patch_deviation: Tensor

    def __init__(self, config: FeaturesConfig, teacher_dim: int) -> None:
        super().__init__()
        self.config = config
        for token in ("class", "patch"):
            self.register_buffer(f"{token}_mean", torch.zeros(teacher_dim))
            self.register_buffer(f"{token}_deviation", torch.ones(teacher_dim))

    def forward(self, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        """Loss terms, each a mean over this process's crops; "loss" is their weighted sum."""
        class_terms: list[Tensor] = []
        patch_terms: list[Tensor] = []
        crops: list[int] = []
        for mine, theirs in zip(student, teacher, strict=True):
            class_target = (theirs["class"] - self.class_mean) / self.class_deviation
            patch_target = (theirs["patches"] - self.patch_mean) / self.patch_deviation
            patches = resample_grid(mine["patches_projected"].flatten(0, 1), patch_target.shape[2])
            class_terms.append(self._distance(mine["class_projected"], class_target))
            patch_terms.append(self._distance(patches, patch_target.flatten(0, 1)))
            crops.append(class_target.shape[0])
        share = torch.tensor(crops, device=class_terms[0].device, dtype=class_terms[0].dtype)
        share = share / share.sum()
        class_term, patch_term = torch.stack(class_terms) @ share, torch.stack(patch_terms) @ share
        loss = self.config.class_weight * class_term + self.config.patch_weight * patch_term
        return {"loss": loss, "class": class_term, "patch": patch_term}

    def _distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        cosine = 1 - F.cosine_similarity(predicted, target, dim=-1).mean()
        return self.config.cosine_weight * cosine + self.config.smooth_l1_weight * F.smooth_l1_loss(predicted, target)

    def in_teacher_space(self, projected: dict[str, Tensor]) -> dict[str, Tensor]:
        """A student's projected tokens at the teacher's own scale: {"class", "patches"}, for measuring and pictures."""
        return {
            "class": projected["class_projected"] * self.class_deviation + self.class_mean,
            "patches": projected["patches_projected"] * self.patch_deviation + self.patch_mean,
        }
