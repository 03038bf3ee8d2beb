"""Relations between tokens: which are alike to the student should be those that are alike to the teacher.

Nothing is projected: cosines of the student's own tokens, which is what k-NN and dense matching use. They do not change
when its space is turned. (Relational distillation, Park et al. 2019; as Gram anchoring in DINOv3, 2025.)
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.objectives.koleo import gather_with_gradient


def gram_loss(student: Float[Tensor, "*crops N Ds"], teacher: Float[Tensor, "*crops N Dt"]) -> Float[Tensor, ""]:
    """Mean of (cos(s_i, s_j) - cos(t_i, t_j))^2 over all pairs of tokens of a crop, and over crops.

    Args:
        student: Patch tokens of each crop, not projected.
        teacher: The same patches of the same crops.
    """
    mine, theirs = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    return F.mse_loss(mine @ mine.mT, theirs @ theirs.mT)


def class_gram_loss(student: Float[Tensor, "V B Ds"], teacher: Float[Tensor, "V B Dt"]) -> Float[Tensor, ""]:
    """The same over all pairs of class tokens of a batch: all views, and the images of all processes.

    Args:
        student: Class tokens of V views of this process's B images, not projected.
        teacher: Of the same views.
    """
    # Images first: this process's rows are then in one piece among everyone's.
    mine, theirs = (F.normalize(tokens.transpose(0, 1).flatten(0, 1), dim=1) for tokens in (student, teacher))
    return F.mse_loss(mine @ gather_with_gradient(mine).T, theirs @ gather_with_gradient(theirs).T)
