"""The paper's objective: DINO on class tokens, iBOT on patch tokens, KoLeo; in pretraining and in distillation."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.config import PrototypesConfig
from dinov2_zoo.models.tokens import BranchOutput, HeadOutput
from dinov2_zoo.objectives.centering import sinkhorn_bias, update_center
from dinov2_zoo.objectives.dino import dino_loss
from dinov2_zoo.objectives.ibot import ibot_loss
from dinov2_zoo.objectives.koleo import koleo_loss
from dinov2_zoo.objectives.precision import without_autocast
from dinov2_zoo.objectives.targets import Targets


class PrototypesObjective(nn.Module):
    """The sum of the three losses, on outputs of `Branch`.

    Its EMA centres are part of the training state; with Sinkhorn-Knopp, which needs none, they stay zero.

    Args:
        config: Weights, temperatures, centring.
        dino_prototypes: K of the class-token head.
        ibot_prototypes: K of the patch-token head.
    """

    couples_images = True
    """Targets are balanced over all images of a step, and each looks for its neighbour among all."""

    dino_center: Tensor
    ibot_center: Tensor

    def __init__(self, config: PrototypesConfig, *, dino_prototypes: int, ibot_prototypes: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("dino_center", torch.zeros(dino_prototypes))
        self.register_buffer("ibot_center", torch.zeros(ibot_prototypes))

    @without_autocast
    def forward(
        self,
        student: Sequence[BranchOutput],
        teacher: Sequence[BranchOutput],
        *,
        teacher_temperature: float,
        patch_weights: Float[Tensor, " n"] | None = None,
    ) -> dict[str, Tensor]:
        """Loss terms, each a mean over this process's images; "loss" is their weighted sum.

        Args:
            student: Outputs for the global crops and, if there are any, the local ones.
            teacher: Outputs for the global crops, at the same patches.
            teacher_temperature: The teacher's softmax has it now.
            patch_weights: How much each patch counts in the iBOT term; None: all the same.
        """
        config, temperature = self.config, self.config.student_temperature
        mine, theirs = student[0], teacher[0]
        assert mine.dino and mine.ibot and theirs.dino and theirs.ibot, "both branches have both heads"
        views = mine.dino.bottleneck
        if len(student) > 1 and student[1].dino:
            views = torch.cat([views, student[1].dino.bottleneck])
        dino = dino_loss(
            views,
            mine.dino.prototypes,
            self._targets(theirs.dino, self.dino_center, teacher_temperature),
            temperature=temperature,
            chunk=config.chunk,
        )
        ibot = ibot_loss(
            mine.ibot.bottleneck,
            mine.ibot.prototypes,
            self._targets(theirs.ibot, self.ibot_center, teacher_temperature),
            temperature=temperature,
            weights=patch_weights,
            chunk=config.chunk,
        )
        koleo = torch.stack([koleo_loss(view) for view in mine.tokens.class_token]).sum()
        loss = config.dino_weight * dino + config.ibot_weight * ibot + config.koleo_weight * koleo
        return {"loss": loss, "dino": dino, "ibot": ibot, "koleo": koleo}

    @torch.no_grad()
    def _targets(self, teacher: HeadOutput, center: Float[Tensor, " K"], temperature: float) -> Targets:
        """The teacher's distributions, balanced."""
        config = self.config
        bottleneck, prototypes = teacher.bottleneck.flatten(0, -2), teacher.prototypes
        if config.centering == "sinkhorn":
            bias = sinkhorn_bias(
                bottleneck,
                prototypes,
                temperature=temperature,
                iterations=config.sinkhorn_iterations,
                chunk=config.chunk,
            )
        else:
            bias = -center.to(bottleneck.dtype) / temperature
            if self.training:
                update_center(center, bottleneck, prototypes, momentum=config.center_momentum)
        return Targets(bottleneck, prototypes, bias, temperature)
