"""iBOT: each chosen patch of the global crops should look to the student as it does to the teacher.

In pretraining these are the patches that the student does not see. In distillation nothing is masked, and by default
every patch counts (so the maintainers' account of the paper's distillation); DINOv3's code samples positions instead,
which `objective.patch_share` does too. `data.positions` says which they are.
"""

from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.objectives.fastest import cross_entropy
from dinov2_zoo.objectives.targets import Targets


def ibot_loss(
    patches: Float[Tensor, "n d"],
    prototypes: Float[Tensor, "K d"],
    targets: Targets,
    *,
    temperature: float,
    weights: Float[Tensor, " n"] | None = None,
    chunk: int = 4096,
) -> Float[Tensor, ""]:
    """Mean cross-entropy over patch tokens, or their weighted sum.

    Args:
        patches: The student's patch tokens after the head.
        prototypes: The student's.
        targets: The teacher's target of the same patches.
        temperature: The student's.
        weights: How much each patch counts (`Batch.weights`); None: 1 / n.
        chunk: Tokens at a time.
    """
    if weights is None:
        weights = patches.new_full((len(patches),), 1 / max(1, len(patches)))
    one = patches.new_ones(1, 1)  # the one view of a patch meets the teacher's
    return cross_entropy(patches[None], prototypes, targets, one, temperature=temperature, weights=weights, chunk=chunk)
