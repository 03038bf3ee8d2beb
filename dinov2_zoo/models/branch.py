"""A backbone with what sits on it: the unit that is sharded, averaged and saved."""

from collections.abc import Sequence

from jaxtyping import Bool, Float, Int8, Int64
from torch import Tensor, nn

from dinov2_zoo.models.heads import FeatureProjector, PrototypeHead, at_least_fp32
from dinov2_zoo.models.stochastic_depth import Subset
from dinov2_zoo.models.stored import StoredBackbone
from dinov2_zoo.models.students import TimmStudent
from dinov2_zoo.models.teacher_view import TeacherView
from dinov2_zoo.models.tokens import BranchOutput, HeadOutput, Tokens
from dinov2_zoo.models.vision_transformer import VisionTransformer

Crops = Float[Tensor, "_ _ 3 _ _"] | Int8[Tensor, "_ _ _"]
"""Views of images, [V, B, 3, H, W]; V, H and W differ between groups. Of a stored teacher the codes, [V, B, F]."""


class Branch(nn.Module):
    """Student, its EMA, or teacher.

    Always call it as a whole: a sharded branch gathers its weights around `forward`, so a child called by itself would
    meet shards. For the same reason prototypes are returned, as computed tensors, and not read off the head.

    Args:
        backbone: The network that is wanted in the end; of a teacher also what it said earlier (`models.stored`).
        dino: Head for class tokens.
        ibot: Head for patch tokens.
        tied: The DINO head serves patch tokens too, in place of `ibot`.
        projector: Maps into the teacher's space.
        further: Maps into the spaces of further teachers, one each.
    """

    def __init__(
        self,
        backbone: VisionTransformer | TimmStudent | StoredBackbone | TeacherView,
        *,
        dino: PrototypeHead | None = None,
        ibot: PrototypeHead | None = None,
        tied: bool = False,
        projector: FeatureProjector | None = None,
        further: Sequence[FeatureProjector] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dino = dino
        self.ibot = ibot
        self.tied = tied
        self.projector = projector
        self.further = nn.ModuleList(further)

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
    ) -> list[BranchOutput]:
        """Outputs of groups of crops, all through the backbone in one packed pass.

        Args:
            crops: Groups [V, B, 3, H, W] of V views of B images; the first group holds the global crops.
            masks: True where a patch of the first group is hidden from the backbone.
            subsets: Which sequences pass through each block (stochastic depth); None: all.
            positions: Which of the first group's V x B x N patches the iBOT head is asked about; None: all.

        Returns:
            One output per group; only the first has patches after the iBOT head.
        """
        found = self._tokens([group.flatten(0, 1) for group in crops], masks, subsets)
        dino, ibot = self.heads
        class_prototypes = None if dino is None else at_least_fp32(dino.prototypes())
        outputs: list[BranchOutput] = []
        for number, (group, tokens) in enumerate(zip(crops, found, strict=True)):
            views = group.shape[:2]
            of_class = of_patches = None
            if dino is not None and class_prototypes is not None:
                of_class = HeadOutput(dino(tokens.class_token).unflatten(0, views), class_prototypes)
            if ibot is not None and number == 0:
                patches = tokens.patches.flatten(0, 1)
                # Not patches[positions]: its gradient allows for repeated rows, and sorts them all on CUDA.
                asked = patches if positions is None else patches.index_select(0, positions)
                of_patches = HeadOutput(ibot(asked), at_least_fp32(ibot.prototypes()))
            projected = None if self.projector is None else _full(self.projector(tokens), views)
            further = [_full(projector(tokens), views) for projector in self.further]
            outputs.append(BranchOutput(_full(tokens, views), projected, of_class, of_patches, further))
        return outputs

    def _tokens(
        self, groups: list[Tensor], masks: Tensor | None, subsets: Sequence[tuple[Subset, Subset]] | None
    ) -> list[Tokens]:
        if not isinstance(self.backbone, VisionTransformer):
            assert masks is None and subsets is None, "only our networks have mask tokens and blocks"
            return self.backbone.tokens(groups)
        hidden = [None if masks is None else masks.flatten(0, 1), *[None] * (len(groups) - 1)]
        return self.backbone.tokens(groups, hidden, subsets)


def _full(tokens: Tokens, views: tuple[int, ...]) -> Tokens:
    """Tokens in fp32 or better, view by view."""
    return tokens.map(lambda x: at_least_fp32(x).unflatten(0, views))
