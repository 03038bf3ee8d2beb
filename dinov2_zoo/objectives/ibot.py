"""iBOT in distillation: each patch of both global crops should look to the student as it does to the teacher.

Nothing is masked here, and by default every patch counts (so the maintainers' account of the paper's distillation).
DINOv3's code samples positions instead, which `positions` does too.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dinov2_zoo.objectives.cross_entropy import chunked_cross_entropy
from dinov2_zoo.objectives.targets import Targets


def ibot_loss(
    patches: Float[Tensor, "n d"],
    prototypes: Float[Tensor, "K d"],
    targets: Targets,
    *,
    temperature: float,
    chunk: int = 4096,
) -> Float[Tensor, ""]:
    """Mean cross-entropy over patch tokens.

    Args:
        patches: The student's patch tokens after the head.
        prototypes: The student's.
        targets: The teacher's opinion of the same patches.
        temperature: The student's.
        chunk: Tokens at a time.
    """
    total = chunked_cross_entropy(patches, prototypes, [targets], temperature=temperature, chunk=chunk)
    return total / len(patches)


def positions(sample_ids: Int64[Tensor, " B"], views: int, patches: int, share: float) -> Int64[Tensor, " n"]:
    """Which of the views x B x patches tokens (in that order) enter the loss: equally many of every crop.

    They depend on the image and the view only. That is random enough, for the crop behind a position is a new one each
    time, and the same on any number of processes.

    Args:
        sample_ids: The images' numbers.
        views: Global crops per image.
        patches: Patches per crop.
        share: Above 0, at most 1; 1 is all of them, in order.
    """
    if share >= 1:
        return torch.arange(views * len(sample_ids) * patches)
    count = max(1, round(share * patches))
    chosen: list[Tensor] = []
    for view in range(views):
        for number, sample in enumerate(sample_ids.tolist()):
            generator = torch.Generator().manual_seed(sample * views + view)
            first = (view * len(sample_ids) + number) * patches
            chosen.append(first + torch.randperm(patches, generator=generator)[:count].sort().values)
    return torch.cat(chosen)
