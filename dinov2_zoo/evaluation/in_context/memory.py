"""Labelled patches that vote: which are kept, what they say of a patch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from dinov2_zoo.evaluation.neighbours import nearest
from dinov2_zoo.evaluation.segmentation.metrics import IGNORED

QUERIES = 4096
"""Patches compared with the memory at a time: bounds memory, changes nothing else."""


@dataclass(frozen=True)
class Memory:
    """Labelled patches."""

    features: Float[Tensor, "n D"]
    """L2-normalised, fp16: a fine enough grid for cosines, and half the memory."""
    labels: Float[Tensor, "n K"]
    """Share of each class among the pixels of the patch, fp32."""

    def votes(
        self, patches: Float[Tensor, "m D"], *, neighbours: int, temperature: float
    ) -> tuple[Float[Tensor, "m K"], Float[Tensor, "m K"]]:
        """What the nearest patches say.

        Args:
            patches: L2-normalised, fp32, on the memory's device.
            neighbours: How many vote; all, where the memory has fewer.
            temperature: Weights are a softmax of cosine / temperature.

        Returns:
            Share of each class by the weighted vote, and the plain share of each class among the neighbours, a patch
            counting as the class that most of it shows.
        """
        voted, among = [], []
        main = F.one_hot(self.labels.argmax(1), self.labels.shape[1]).float()
        for part in patches.split(QUERIES):
            cosine, where = nearest(self.features, part, neighbours)
            weights = (cosine / temperature).softmax(1)
            # embedding_bag gathers and sums in one go: [m, k, K] is never there.
            voted.append(F.embedding_bag(where, self.labels, per_sample_weights=weights, mode="sum"))
            among.append(F.embedding_bag(where, main, mode="mean"))
        return torch.cat(voted), torch.cat(among)


def patch_counts(mask: Int64[Tensor, "H W"], grid: tuple[int, int], classes: int) -> Int64[Tensor, "n K"]:
    """How many pixels of each class every patch of an image shows, patches in row-major order.

    Args:
        mask: Class numbers at any resolution: a pixel counts for the patch that holds its centre. `IGNORED` counts for
            none.
        grid: Rows and columns of patches.
        classes: Their number.
    """
    rows, columns = (
        (2 * torch.arange(side, device=mask.device) + 1) * count // (2 * side)
        for side, count in zip(mask.shape, grid, strict=True)
    )
    patch = rows[:, None] * grid[1] + columns
    counted = mask != IGNORED
    cells = torch.bincount(patch[counted] * classes + mask[counted], minlength=grid[0] * grid[1] * classes)
    return cells.view(-1, classes)


def chosen_patches(counts: Int64[Tensor, "n K"], most: int, randomness: torch.Generator) -> Int64[Tensor, " m"]:
    """Which patches of an image to keep, ascending: those of its rare classes are likelier (open-hummingbird's rule).

    A patch's score is a uniform number times the number of patches that share a class with it, summed over its
    classes; the lowest scores win. Patches without a labelled pixel are never chosen.

    Args:
        counts: Pixels of each class in each patch.
        most: Patches to keep.
        randomness: Of the scores.
    """
    present = (counts > 0).float()
    score = (present @ present.sum(0)) * torch.rand(len(counts), generator=randomness)
    labelled = counts.sum(1).nonzero()[:, 0]
    order = score[labelled].argsort(stable=True)[:most]
    return labelled[order].sort().values
