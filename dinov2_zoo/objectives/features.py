"""Distillation by features, head-free: the teacher's tokens themselves, through a linear projector.

A teacher's channels differ in scale by orders of magnitude, so its tokens are standardised per channel first, class and
patch tokens apart (after UNIC and RADIO); then cosine and smooth-L1.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.config import FeaturesConfig
from dinov2_zoo.models.grid import resample_grid
from dinov2_zoo.models.tokens import BranchOutput, Tokens
from dinov2_zoo.objectives.precision import without_autocast


class Standardiser(nn.Module):
    """Mean and deviation of tokens, per channel; part of the training state.

    The teacher is frozen, so these are numbers, not something to track: `fit_projector` measures them once, before the
    first step.

    Args:
        dim: Width of the tokens.
    """

    mean: Float[Tensor, " D"]
    deviation: Float[Tensor, " D"]

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))

    def standardise(self, tokens: Float[Tensor, "*some D"]) -> Float[Tensor, "*some D"]:
        """Tokens whose channels have mean 0 and deviation 1."""
        return (tokens - self.mean) / self.deviation

    def restore(self, standardised: Float[Tensor, "*some D"]) -> Float[Tensor, "*some D"]:
        """Undo `standardise`."""
        return standardised * self.deviation + self.mean


class FeaturesObjective(nn.Module):
    """Class-token and patch-token terms over all crops, on outputs of `Branch` for the same crops.

    Args:
        config: Weights.
        teacher_dim: Width of the teacher's tokens.
    """

    def __init__(self, config: FeaturesConfig, teacher_dim: int) -> None:
        super().__init__()
        self.config = config
        self.class_token = Standardiser(teacher_dim)
        self.patches = Standardiser(teacher_dim)

    @without_autocast
    def forward(self, student: Sequence[BranchOutput], teacher: Sequence[BranchOutput]) -> dict[str, Tensor]:
        """Loss terms, each a mean over this process's crops; "loss" is their weighted sum."""
        terms: list[Tensor] = []
        crops: list[int] = []
        for mine, theirs in zip(student, teacher, strict=True):
            assert mine.projected is not None, "the student of a distillation by features has a projector"
            class_target = self.class_token.standardise(theirs.tokens.class_token)
            patch_target = self.patches.standardise(theirs.tokens.patches).flatten(0, 1)
            patches = resample_grid(mine.projected.patches.flatten(0, 1), patch_target.shape[1])
            class_term = self._distance(mine.projected.class_token, class_target)
            terms.append(torch.stack([class_term, self._distance(patches, patch_target)]))
            crops.append(len(class_target))
        share = terms[0].new_tensor(crops) / sum(crops)
        class_term, patch_term = share @ torch.stack(terms)
        loss = self.config.class_weight * class_term + self.config.patch_weight * patch_term
        return {"loss": loss, "class": class_term, "patch": patch_term}

    def _distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        cosine = 1 - F.cosine_similarity(predicted, target, dim=-1).mean()
        return self.config.cosine_weight * cosine + self.config.smooth_l1_weight * F.smooth_l1_loss(predicted, target)

    def in_teacher_space(self, projected: Tokens) -> Tokens:
        """A student's projected tokens at the teacher's own scale, for measuring and pictures."""
        return Tokens(self.class_token.restore(projected.class_token), self.patches.restore(projected.patches))
