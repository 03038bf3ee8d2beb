"""How well a student stands in for its teacher, on images that neither training nor the projector has seen."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.data.decode import decode
from dinov2_zoo.data.preprocess import eval_image
from dinov2_zoo.data.sources import Source
from dinov2_zoo.evaluation.agreement import Agreement, agreement
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.objectives.distillation import Distillation


@dataclass(frozen=True)
class Measured:
    """Agreement over the held-out images, and the patch maps that the pictures show."""

    agreement: Agreement
    teacher_patches: Float[Tensor, "B N D"]
    student_patches: Float[Tensor, "B N D"]
    """The student's patches carried into the teacher's space by the projector."""


def load_images(source: Source, size: int, limit: int | None = None) -> Float[Tensor, "B 3 S S"]:
    """Prepare a source's images for measuring: short side resized, centre crop, ImageNet statistics."""
    count = len(source) if limit is None else min(limit, len(source))
    return torch.stack([eval_image(decode(source.read(i)), size) for i in range(count)])
