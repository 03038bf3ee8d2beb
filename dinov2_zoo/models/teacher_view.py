"""What one of several teachers sees: the crops that all see, in its own normalisation and at a side that it takes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD
from dinov2_zoo.models.students import TimmStudent
from dinov2_zoo.models.tokens import Tokens
from dinov2_zoo.models.vision_transformer import VisionTransformer


class TeacherView(nn.Module):
    """A teacher's backbone behind its view of the crops.

    A crop whose side the teacher does not take is resized, bicubic with antialiasing: to the nearest multiple of its
    patch, or, for a network of one size, to that. Its grid then is another than the student's, and losses resample.

    Args:
        backbone: The network.
        multiple: Sides it takes are multiples of this, pixels.
        side: The one side that it takes, pixels; None: any multiple.
        mean: Of its normalisation, per channel, of pixels 0..1.
        std: The same.
    """

    scale: Float[Tensor, "3 1 1"]
    shift: Float[Tensor, "3 1 1"]

    def __init__(
        self,
        backbone: VisionTransformer | TimmStudent,
        *,
        multiple: int = 1,
        side: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.multiple = multiple
        self.side = side
        self.embed_dim, self.class_dim = backbone.embed_dim, backbone.class_dim
        ours, theirs = ((torch.tensor(m), torch.tensor(s)) for m, s in ((IMAGENET_MEAN, IMAGENET_STD), (mean, std)))
        # (x * our std + our mean - their mean) / their std
        self.register_buffer("scale", (ours[1] / theirs[1])[:, None, None], persistent=False)
        self.register_buffer("shift", ((ours[0] - theirs[0]) / theirs[1])[:, None, None], persistent=False)

    def takes(self, side: int) -> int:
        """The side at which it sees a crop of `side` pixels."""
        return self.side or max(1, round(side / self.multiple)) * self.multiple

    def see(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 s s"]:
        """Images with ImageNet's statistics, as the backbone expects them."""
        side = self.takes(images.shape[-1])
        if side != images.shape[-1]:
            images = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True)
        return images * self.scale.to(images.dtype) + self.shift.to(images.dtype)

    def tokens(self, groups: Sequence[Float[Tensor, "_ 3 _ _"]], *_: object) -> list[Tokens]:
        """Tokens of groups of images."""
        return self.backbone.tokens([self.see(images) for images in groups])
