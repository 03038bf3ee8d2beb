"""The paper's objective: DINO on class tokens, iBOT on patch tokens, KoLeo; in pretraining and in distillation."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.config import PrototypesConfig
from dinov2_zoo.objectives.centering import sinkhorn_bias, update_center
from dinov2_zoo.objectives.dino import dino_loss
from dinov2_zoo.objectives.ibot import ibot_loss
from dinov2_zoo.objectives.koleo import koleo_loss
from dinov2_zoo.objectives.targets import Targets

Outputs = list[dict[str, Tensor]]


class PrototypesObjective(nn.Module):
    """The sum of the three losses, on outputs of `Branch`.

    Its EMA centres are part of the training state; with Sinkhorn-Knopp, which needs none, they stay zero.

    Args:
        config: Weights, temperatures, centring.
        dino_prototypes: K of the class-token head.
        ibot_prototypes: K of the patch-token head.
    """

    dino_center: Tensor
    ibot_center: Tensor

    def __init__(self, config: PrototypesConfig, *, dino_prototypes: int, ibot_prototypes: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("dino_center", torch.zeros(dino_prototypes))
        self.register_buffer("ibot_center", torch.zeros(ibot_prototypes))

    def forward(
        self,
        student: Outputs,
        teacher: Outputs,
        *,
        teacher_temperature: float,
        patch_weights: Float[Tensor, " n"] | None = None,
    ) -> dict[str, Tensor]:
        """Loss terms, each a mean over this process's images; "loss" is their weighted sum.

        Args:
            student: Outputs for the global crops and, if there are any, the local ones.
            teacher: Outputs for the global crops, at the same patches.
            teacher_temperature: Of the teacher's softmax, now.
            patch_weights: Of the patches in the iBOT term; None: equal ones.
        """
        config, temperature = self.config, self.config.student_temperature
        mine, theirs = student[0], teacher[0]
        # Small temperatures: logits are computed in fp32 even where the networks run in bf16.
        with torch.autocast(mine["class"].device.type, enabled=False):
            images = mine["class"].shape[1]
            class_targets = self._targets(theirs, "dino", teacher_temperature)
            dino = dino_loss(
                mine["dino_bottleneck"],
                student[1]["dino_bottleneck"] if len(student) > 1 else mine["dino_bottleneck"][:0],
                mine["dino_prototypes"],
                [_rows(class_targets, slice(0, images)), _rows(class_targets, slice(images, None))],
                temperature=temperature,
                chunk=config.chunk,
            )
            ibot = ibot_loss(
                mine["ibot_bottleneck"],
                mine["ibot_prototypes"],
                self._targets(theirs, "ibot", teacher_temperature),
                temperature=temperature,
                weights=patch_weights,
                chunk=config.chunk,
            )
            koleo = torch.stack([koleo_loss(view) for view in mine["class"]]).sum()
        loss = config.dino_weight * dino + config.ibot_weight * ibot + config.koleo_weight * koleo
        return {"loss": loss, "dino": dino, "ibot": ibot, "koleo": koleo}

    @torch.no_grad()
    def _targets(self, teacher: dict[str, Tensor], head: str, temperature: float) -> Targets:
        """The teacher's distributions, balanced."""
        config = self.config
        bottleneck, prototypes = teacher[f"{head}_bottleneck"].flatten(0, -2), teacher[f"{head}_prototypes"]
        if config.centering == "sinkhorn":
            bias = sinkhorn_bias(
                bottleneck,
                prototypes,
                temperature=temperature,
                iterations=config.sinkhorn_iterations,
                chunk=config.chunk,
            )
        else:
            center = self.dino_center if head == "dino" else self.ibot_center
            bias = -center.to(bottleneck.dtype) / temperature
            if self.training:
                update_center(center, bottleneck, prototypes, momentum=config.center_momentum)
        return Targets(bottleneck, prototypes, bias, temperature)


def _rows(targets: Targets, rows: slice) -> Targets:
    return Targets(targets.bottleneck[rows], targets.prototypes, targets.bias, targets.temperature)
