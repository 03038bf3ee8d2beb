"""A backbone with what sits on it: the unit that is sharded, averaged and saved."""

from collections.abc import Sequence

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from dinov2_zoo.models.heads import FeatureProjector, PrototypeHead, at_least_fp32
from dinov2_zoo.models.stochastic_depth import Subset
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
        tied: The DINO head serves patch tokens too, in place of `ibot`.
        projector: Maps into the teacher's space.
    """

    def __init__(
        self,
        backbone: VisionTransformer | TimmStudent,
        *,
        dino: PrototypeHead | None = None,
        ibot: PrototypeHead | None = None,
        tied: bool = False,
        projector: FeatureProjector | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dino = dino
        self.ibot = ibot
        self.tied = tied
        self.projector = projector

    @property
    def heads(self) -> tuple[PrototypeHead | None, PrototypeHead | None]:
        """Heads for class tokens and for patch tokens."""
        return self.dino, self.dino if self.tied else self.ibot

    def forward(
        self,
        crops: Sequence[Crops],
        *,
        masks: Bool[Tensor, "V B N"] | None = None,
        subsets: Sequence[tuple[Subset, Subset]] | None = None,
        positions: Int64[Tensor, " n"] | None = None,
    ) -> list[dict[str, Tensor]]:
        """Outputs of groups of crops, all through the backbone in one packed pass.

        Args:
            crops: Groups [V, B, 3, H, W] of V views of B images; the first group holds the global crops.
            masks: True where a patch of the first group is hidden from the backbone.
            subsets: Which sequences pass through each block (stochastic depth); None: all.
            positions: Which of the first group's V x B x N patches the iBOT head is asked about; None: all.

        Returns:
            Per group, fp32: class [V, B, D] and patches [V, B, N, D]; with a projector, class_projected and
            patches_projected; with a DINO head, dino_bottleneck [V, B, d]. The first group has dino_prototypes
            [K, d] too and, with an iBOT head, ibot_bottleneck [n, d] and ibot_prototypes [K, d].
        """
        outputs: list[dict[str, Tensor]] = []
        features = self._features([group.flatten(0, 1) for group in crops], masks, subsets)
        dino, ibot = self.heads
        for number, (group, tokens) in enumerate(zip(crops, features, strict=True)):
            views = group.shape[:2]
            found = {"class": tokens["x_norm_clstoken"], "patches": tokens["x_norm_patchtokens"]}
            if self.projector is not None:
                found["class_projected"] = self.projector.class_token(found["class"])
                found["patches_projected"] = self.projector.patches(found["patches"])
            if dino is not None:
                found["dino_bottleneck"] = dino(found["class"])
            found = {name: at_least_fp32(x).unflatten(0, views) for name, x in found.items()}
            if dino is not None and number == 0:
                found["dino_prototypes"] = dino.prototypes()
            if ibot is not None and number == 0:
                patches = tokens["x_norm_patchtokens"].flatten(0, 1)
                found["ibot_bottleneck"] = ibot(patches if positions is None else patches[positions])
                found["ibot_prototypes"] = ibot.prototypes()
            outputs.append(found)
        return outputs

    def _features(
        self, groups: list[Tensor], masks: Tensor | None, subsets: Sequence[tuple[Subset, Subset]] | None
    ) -> list[dict[str, Tensor]]:
        if isinstance(self.backbone, TimmStudent):
            assert masks is None and subsets is None, "timm networks have neither mask tokens nor our blocks"
            return self.backbone.forward_features(groups)
        hidden = [None if masks is None else masks.flatten(0, 1), *[None] * (len(groups) - 1)]
        return self.backbone.forward_features(groups, hidden, subsets)
