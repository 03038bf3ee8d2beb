"""iBOT: each chosen patch of the global crops should look to the student as it does to the teacher.

In pretraining these are the patches that the student does not see (`masked_positions`). In distillation nothing is
masked, and by default every patch counts (so the maintainers' account of the paper's distillation); DINOv3's code
samples positions instead, which `sampled_positions` does too.
"""

import torch
from jaxtyping import Bool, Float, Int64
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
        weights: How much each patch counts (`masked_positions`); None: 1 / n.
        chunk: Tokens at a time.
    """
    if weights is None:
        weights = patches.new_full((len(patches),), 1 / max(1, len(patches)))
    one = patches.new_ones(1, 1)  # the one view of a patch meets the teacher's
    return cross_entropy(patches[None], prototypes, targets, one, temperature=temperature, weights=weights, chunk=chunk)


def masked_positions(masks: Bool[Tensor, "V B N"]) -> tuple[Int64[Tensor, " n"], Float[Tensor, " n"]]:
    """Which of the V x B x N patches (in that order) are masked, and their weights in the loss (official).

    A patch weighs 1 / (masked patches of its crop), over all crops, also those without a mask: with half of the crops
    masked the weights sum to a half.
    """
    crops = masks.flatten(0, 1)
    found = crops.flatten().nonzero().squeeze(1)
    counts = crops.sum(1).clamp(min=1)
    weights = 1 / (counts[found // crops.shape[1]] * len(crops))
    return found, weights


def sampled_positions(seeds: Int64[Tensor, " B"], views: int, patches: int, share: float) -> Int64[Tensor, " n"]:
    """Which of the views x B x patches tokens (in that order) enter the loss: equally many of every crop.

    They depend on the image, the epoch and the view only, and so are the same on any number of processes.

    Args:
        seeds: `Batch.seeds`.
        views: Global crops per image.
        patches: Patches per crop.
        share: Above 0, at most 1; 1 is all of them, in order.
    """
    if share >= 1:
        return torch.arange(views * len(seeds) * patches)
    count = max(1, round(share * patches))
    chosen: list[Tensor] = []
    for number, seed in enumerate(seeds.tolist()):
        generator = torch.Generator().manual_seed(seed)
        for view in range(views):
            first = (view * len(seeds) + number) * patches
            chosen.append(first + torch.randperm(patches, generator=generator)[:count])
    return torch.cat(chosen).sort().values
