"""Relations between tokens: which are alike to the student should be those that are alike to the teacher.

Nothing is projected: cosines of the student's own tokens, which is what k-NN and dense matching use. They do not change
when its space is turned. (Relational distillation, Park et al. 2019; as Gram anchoring in DINOv3, 2025.)

The mean of the tokens that are compared is taken off first, as in centred kernel alignment (Kornblith et al. 2019).
Tokens of one picture have much in common, so that plain cosines are nearly the same for all pairs, and so is what they
teach: measured here, neighbours fall with plain cosines and rise with these (LOG.md).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.objectives.koleo import gather_with_gradient

SMALLEST = 1e-3
"""Length below which a centred token counts as none. Tokens have lengths of 1 to 100; those of a blank picture may
differ by rounding alone, and that has no direction to be learned."""

MOST = 256
"""Patches of a crop that are compared, those of 224 pixels (chosen here): all pairs of 1,369 take 7.5 MB a crop."""


def gram_loss(student: Float[Tensor, "*crops N Ds"], teacher: Float[Tensor, "*crops N Dt"]) -> Float[Tensor, ""]:
    """Mean of (cos(s_i, s_j) - cos(t_i, t_j))^2 over all pairs of tokens of a crop, and over crops.

    s and t are the differences from the mean of the crop's tokens. Of more than 256 tokens every n-th is taken.

    Args:
        student: Patch tokens of each crop, not projected.
        teacher: The same patches of the same crops.
    """
    count = student.shape[-2]
    taken = torch.arange(min(count, MOST), device=student.device) * count // min(count, MOST)
    mine, theirs = (
        _directions(tokens.index_select(-2, taken), tokens.mean(-2, keepdim=True)) for tokens in (student, teacher)
    )
    return F.mse_loss(mine @ mine.mT, theirs @ theirs.mT)


def class_gram_loss(student: Float[Tensor, "V B Ds"], teacher: Float[Tensor, "V B Dt"]) -> Float[Tensor, ""]:
    """The same over all pairs of class tokens of a batch: all views, and the images of all processes.

    Args:
        student: Class tokens of V views of this process's B images, not projected.
        teacher: Of the same views.
    """

    def cosines(tokens: Tensor) -> Tensor:
        # Images first: this process's rows are then in one piece among everyone's.
        rows = tokens.transpose(0, 1).flatten(0, 1)
        everyone = gather_with_gradient(rows)
        own, others = (_directions(part, everyone.mean(0)) for part in (rows, everyone))
        return own @ others.T

    return F.mse_loss(cosines(student), cosines(teacher))


def _directions(tokens: Tensor, centre: Tensor) -> Tensor:
    return F.normalize(tokens - centre, dim=-1, eps=SMALLEST)
