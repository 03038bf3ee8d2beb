"""A backbone with what sits on it: the unit that is sharded, averaged and saved."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.models.heads import FeatureProjector, PrototypeHead, at_least_fp32
from dinov2_zoo.models.students import TimmStudent
from dinov2_zoo.models.vision_transformer import VisionTransformer

Crops = Float[Tensor, "V B 3 H W"]


class Branch(nn.Module):
    """Student, its EMA, or teacher.

    Always call it as a whole: a sharded branch gathers its weights around `forward`, so a child called by itself would
    meet shards. For the same reason prototypes are returned, as computed tensors, and not read off the head.

    Args:
        backbone: The network that is wanted in the end.
        dino: Head for class tokens.
        ibot: Head for patch tokens.
        projector: Maps into the teacher's space.
    """

    def __init__(
        self,
        backbone: VisionTransformer | TimmStudent,
        *,
        dino: PrototypeHead | None = None,
        ibot: PrototypeHead | None = None,
        projector: FeatureProjector | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dino = dino
        self.ibot = ibot
        self.projector = projector

    def forward(self, crops: Sequence[Crops]) -> list[dict[str, Tensor]]:
        """Outputs of groups of crops, all through the backbone in one packed pass.

        Args:
            crops: Groups [V, B, 3, H, W] of V views of B images; the first group holds the global crops.

        Returns:
            Per group, fp32: class [V, B, D] and patches [V, B, N, D]; with a projector, class_projected and
            patches_projected; with a DINO head, dino_bottleneck [V, B, d] and dino_prototypes [K, d]; with an iBOT
            head, for the first group only, ibot_bottleneck [V, B, N, d] and ibot_prototypes [K, d].
        """
        outputs: list[dict[str, Tensor]] = []
        features = self.backbone.forward_features([group.flatten(0, 1) for group in crops])
        for number, (group, tokens) in enumerate(zip(crops, features, strict=True)):
            views = group.shape[:2]
            found = {"class": tokens["x_norm_clstoken"], "patches": tokens["x_norm_patchtokens"]}
            if self.projector is not None:
                found["class_projected"] = self.projector.class_token(found["class"])
                found["patches_projected"] = self.projector.patches(found["patches"])
            if self.dino is not None:
                found["dino_bottleneck"] = self.dino(found["class"])
            if self.ibot is not None and number == 0:
                found["ibot_bottleneck"] = self.ibot(found["patches"])
            found = {name: at_least_fp32(x).unflatten(0, views) for name, x in found.items()}
            if self.dino is not None:
                found["dino_prototypes"] = self.dino.prototypes()
            if self.ibot is not None and number == 0:
                found["ibot_prototypes"] = self.ibot.prototypes()
            outputs.append(found)
        return outputs
