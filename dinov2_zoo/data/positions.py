"""Which patches of the global crops a loss on patch tokens looks at, and how much each counts.

Found where batches are made, ahead of the step: how many there are must be known on the host, and a device that is
asked for it in the middle of a step lets the host wait.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


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
