"""DINO: every view of an image should look to the student as every other global view does to the teacher."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.objectives.cross_entropy import chunked_cross_entropy
from dinov2_zoo.objectives.targets import Targets


def dino_loss(
    global_views: Float[Tensor, "2 B d"],
    local_views: Float[Tensor, "L B d"],
    prototypes: Float[Tensor, "K d"],
    targets: Sequence[Targets],
    *,
    temperature: float,
    chunk: int = 4096,
) -> Float[Tensor, ""]:
    """Mean cross-entropy over pairs (student view, teacher's global view) of the same image, and over images.

    A global view is not matched with itself: 2 pairs of global views and 2 L with local ones (paper: L = 8, so each
    pair weighs 1/18).

    Args:
        global_views: The student's class tokens after the head.
        local_views: The same of the local crops; L may be 0.
        prototypes: The student's.
        targets: The teacher's two global views, B tokens each.
        temperature: The student's.
        chunk: Tokens at a time.
    """
    images = global_views.shape[1]
    pairs = [(global_views[0], [targets[1]]), (global_views[1], [targets[0]])]
    pairs += [(view, list(targets)) for view in local_views]
    total = sum(
        chunked_cross_entropy(view, prototypes, matched, temperature=temperature, chunk=chunk)
        for view, matched in pairs
    )
    return total / (sum(len(matched) for _, matched in pairs) * images)  # pyright: ignore[reportReturnType]
