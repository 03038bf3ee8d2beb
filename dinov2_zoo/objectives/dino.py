"""DINO: every view of an image should look to the student as every other global view does to the teacher."""

from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.objectives.fastest import cross_entropy
from dinov2_zoo.objectives.targets import Targets


def dino_loss(
    views: Float[Tensor, "V B d"],
    prototypes: Float[Tensor, "K d"],
    targets: Targets,
    *,
    temperature: float,
    chunk: int = 4096,
) -> Float[Tensor, ""]:
    """Mean cross-entropy over pairs (student view, teacher's global view) of the same image, and over images.

    A global view is not matched with itself: with two of them, 2 pairs of global views and 2 L with L local ones
    (paper: L = 8, so each pair weighs 1/18).

    Args:
        views: The student's class tokens after the head, global views first.
        prototypes: The student's.
        targets: The teacher's of the global views, G x B, view by view.
        temperature: The student's.
        chunk: Tokens at a time.
    """
    count, images = views.shape[:2]
    seen = len(targets.bottleneck) // images
    pairs = views.new_ones(count, seen).fill_diagonal_(0)
    total = cross_entropy(views, prototypes, targets, pairs, temperature=temperature, chunk=chunk)
    return total / ((count * seen - seen) * images)
