"""Which sequences pass through each residual branch in stochastic depth: drawn for the step, cut among its processes.

A branch runs on a random subset of the sequences (paper, section 5), officially of each GPU's. Which they are must not
depend on how many processes and micro-batches a step has. So the images of a step are taken 16 at a time, in order, and
a subset of each such stratum stays, drawn from (seed, step, stratum); a process keeps what is its own of it. Where its
share is a multiple of 16 images, every branch runs on as many sequences, and nothing has to be drawn for others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dinov2_zoo.data.augment import generator

STRATUM = 16
"""Images among whose sequences a subset is drawn; chosen here (official: those of a GPU, 12 to 64)."""


@dataclass(frozen=True)
class DropPath:
    """Stochastic depth of a student."""

    rate: float
    """Share of the sequences that each branch leaves out, the same for all blocks (official); 0 to below 1."""
    depth: int
    """Blocks; each has two branches, attention and feed-forward."""
    seed: int
    """Of the run."""


class Share(NamedTuple):
    """A part of a step's images: those of one process and micro-batch."""

    step: int
    first: int
    """Position in the step of the first image."""
    images: int
    of: int
    """Images of the whole step."""


@dataclass(frozen=True)
class Kept:
    """The sequences of a group of crops that each branch runs on, branch after branch."""

    sequences: Int64[Tensor, " kept"]
    """Their numbers in the group, ascending in each branch; a group is ordered by view, then image."""
    scale: Float[Tensor, " kept"]
    """What the branch's result counts: sequences over kept ones, of their stratum."""
    counts: tuple[int, ...]
    """How many each branch has, at least 1: attention and feed-forward of the first block, of the second, and so on."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "Kept":
        """The same function of both tensors."""
        return Kept(function(self.sequences), function(self.scale), self.counts)


def draw_kept(config: DropPath, views: Sequence[int], share: Share) -> list[Kept]:
    """The kept sequences of each group of crops: max(1, int(n (1 - rate))) of the n of each stratum.

    Args:
        config: Rate and depth.
        views: Crops per image in each group.
        share: Of which images.
    """
    scales: list[list[Tensor]] = [[] for _ in views]
    for start in range(share.first // STRATUM * STRATUM, share.first + share.images, STRATUM):
        images = min(STRATUM, share.of - start)
        source = generator("drop path", config.seed, share.step, start)
        keys = torch.rand(sum(views), images, 2 * config.depth, generator=source)
        mine = slice(max(share.first - start, 0), min(share.first + share.images - start, images))
        for group, found in zip(keys.split(list(views)), scales, strict=True):
            sequences = group.flatten(0, 1)
            kept = max(1, int(len(sequences) * (1 - config.rate)))
            chosen = sequences.argsort(dim=0)[:kept]
            scale = torch.zeros_like(sequences).scatter_(0, chosen, len(sequences) / kept)
            found.append(scale.view_as(group)[:, mine])
    return [_kept(torch.cat(parts, dim=1)) for parts in scales]


def _kept(scale: Float[Tensor, "V B branches"]) -> Kept:
    """From what each sequence counts in each branch, 0 where it is left out."""
    rows = scale.flatten(0, 1).T
    runs = rows > 0
    # Nothing of this share is kept: one sequence runs and counts nothing, so that all weights have a gradient, as
    # sharding wants it.
    runs[:, 0] |= ~runs.any(dim=1)
    return Kept(runs.nonzero()[:, 1], rows[runs], tuple(runs.sum(dim=1).tolist()))
