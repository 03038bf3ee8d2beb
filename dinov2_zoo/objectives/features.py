"""Distillation by features, head-free: the teacher's tokens themselves, through a projector, and their relations.

The teacher's tokens are standardised first, class and patch tokens apart (`standardiser`). Each term is a file of its
own; `FeaturesConfig` says how much each counts, and by default relations and neighbours do not.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from dinov2_zoo.config import FeaturesConfig
from dinov2_zoo.models.grid import resample_grid
from dinov2_zoo.models.tokens import BranchOutput, Tokens
from dinov2_zoo.objectives.distances import token_distance
from dinov2_zoo.objectives.neighbours import ClassQueue, patch_neighbour_loss
from dinov2_zoo.objectives.precision import without_autocast
from dinov2_zoo.objectives.relations import class_gram_loss, gram_loss
from dinov2_zoo.objectives.standardiser import Standardiser


class FeaturesObjective(nn.Module):
    """The sum of the terms over all crops, on outputs of `Branch` for the same crops.

    Args:
        config: Weights.
        teacher_dim: Width of the teacher's patch tokens.
        teacher_class_dim: Width of its class token; default: the same.

    Raises:
        ConfigError: The teacher's width has no PHI-S standardisation.
    """

    def __init__(self, config: FeaturesConfig, teacher_dim: int, teacher_class_dim: int | None = None) -> None:
        super().__init__()
        class_dim = teacher_class_dim or teacher_dim
        self.config = config
        self.class_token = Standardiser(class_dim, config.standardise)
        self.patches = Standardiser(teacher_dim, config.standardise)
        self.queue = ClassQueue(config.queue_size, class_dim) if config.queue_weight else None
        self.weights = {
            "class": config.class_weight,
            "patch": config.patch_weight,
            "gram": config.gram_weight,
            "class_gram": config.class_gram_weight,
            "patch_neighbours": config.neighbour_weight,
            "class_neighbours": config.queue_weight,
        }
        """By name of the term."""
        self.couples_images = any(self.weights[name] for name in ("class_gram", "patch_neighbours", "class_neighbours"))
        """Whether a term looks at all images of a step together."""

    @without_autocast
    def forward(
        self,
        student: Sequence[BranchOutput],
        teacher: Sequence[BranchOutput],
        seeds: Int64[Tensor, " B"] | None = None,
    ) -> dict[str, Tensor]:
        """Loss terms, each a mean over this process's crops; "loss" is their weighted sum.

        Args:
            student: Outputs for the global crops and, if there are any, the local ones.
            teacher: The teacher's for the same crops; their grids may have another size.
            seeds: `Batch.seeds`, for the patch neighbours.
        """
        found = [self._terms(mine, theirs, seeds) for mine, theirs in zip(student, teacher, strict=True)]
        if self.queue is not None and self.training:
            self.queue.add(self.class_token.standardise(teacher[0].tokens.class_token))
        shares = [len(theirs.tokens.class_token) for theirs in teacher]  # every crop counts alike, whatever its size
        terms = {
            name: torch.stack([part[name] * (n / sum(shares)) for part, n in zip(found, shares, strict=True)]).sum()
            for name in found[0]
        }
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return {"loss": loss, **terms}

    def _terms(self, student: BranchOutput, teacher: BranchOutput, seeds: Tensor | None) -> dict[str, Tensor]:
        """The terms that count, of crops of one size."""
        config, own, theirs, projected = self.config, student.tokens, teacher.tokens, student.projected
        assert projected is not None, "the student of a distillation by features has a projector"
        class_target = self.class_token.standardise(theirs.class_token)

        def on_grid(patches: Tensor) -> Tensor:
            resampled = resample_grid(patches.flatten(0, 1), theirs.patches.shape[2])
            return resampled.unflatten(0, patches.shape[:2])

        def of_class() -> Tensor:
            if config.class_distance == "cosine":
                return token_distance(projected.class_token, class_target, cosine=1.0)
            return self._distance(projected.class_token, class_target)

        def of_patches() -> Tensor:
            return self._distance(on_grid(projected.patches), self.patches.standardise(theirs.patches))

        def of_neighbours() -> Tensor:
            assert seeds is not None, "patches are drawn by the seeds of a batch"
            count, temperature = config.neighbour_patches, config.neighbour_temperature
            patches = on_grid(own.patches)
            return patch_neighbour_loss(patches, theirs.patches, seeds, patches=count, temperature=temperature)

        def of_queue() -> Tensor:
            assert self.queue is not None
            return self.queue.loss(projected.class_token, class_target, config.queue_temperature)

        terms: dict[str, Callable[[], Tensor]] = {
            "class": of_class,
            "patch": of_patches,
            "gram": lambda: gram_loss(on_grid(own.patches), theirs.patches),
            "class_gram": lambda: class_gram_loss(own.class_token, theirs.class_token),
            "patch_neighbours": of_neighbours,
            "class_neighbours": of_queue,
        }
        return {name: term() for name, term in terms.items() if self.weights[name]}

    def _distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        config = self.config
        return token_distance(
            predicted, target, cosine=config.cosine_weight, smooth_l1=config.smooth_l1_weight, mse=config.mse_weight
        )

    def in_teacher_space(self, projected: Tokens) -> Tokens:
        """A student's projected tokens at the teacher's own scale, for measuring and pictures."""
        return Tokens(self.class_token.restore(projected.class_token), self.patches.restore(projected.patches))
