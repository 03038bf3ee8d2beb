"""Efficient stochastic depth: a residual branch runs on a random subset of the sequences only (paper, section 5).

Instead of computing a branch for everyone and dropping some results, those sequences are left out beforehand; the
others' results are scaled up, so that the expectation is that of the whole. Attention and feed-forward draw apart, and
so does each group of crops. The draws are made ahead, by the loader (`data.drop_path`): activation checkpointing then
recomputes with the same ones, and a restarted run repeats them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dinov2_zoo.data.drop_path import Kept
from dinov2_zoo.models.packing import Packing

Residual = Callable[[Tensor, Packing], Tensor]
"""A branch: a packed row [total, D] and its packing to what is added to the row."""


@dataclass(frozen=True)
class Subset:
    """The sequences of a packed row that one branch runs on."""

    rows: Int64[Tensor, " kept"]
    """Their tokens' indices in the row, in order."""
    packing: Packing
    """How the kept tokens divide into sequences."""
    scale: Float[Tensor, "kept 1"]
    """What each token's result counts."""


def subsets_of(kept: Sequence[Kept], packing: Packing) -> list[tuple[Subset, Subset]]:
    """Subsets for attention and feed-forward of every block, on the device of `kept`; the host waits for nothing.

    Args:
        kept: Sequences of each group.
        packing: How the whole row divides into sequences.
    """
    rows: list[Sequence[Tensor]] = []
    scales: list[Sequence[Tensor]] = []
    first = 0
    for group, (sequences, tokens) in zip(kept, packing.groups, strict=True):
        starts = first + group.sequences * tokens
        places = starts[:, None] + torch.arange(tokens, device=starts.device)
        rows.append(places.split(group.counts))
        scales.append(group.scale[:, None].expand_as(places).split(group.counts))
        first += sequences * tokens
    branches = [
        Subset(
            torch.cat([part.flatten() for part in of_branch]),
            Packing(tuple((len(part), part.shape[1]) for part in of_branch)),
            torch.cat([part.flatten() for part in scale])[:, None],
        )
        for of_branch, scale in zip(zip(*rows, strict=True), zip(*scales, strict=True), strict=True)
    ]
    return list(zip(branches[::2], branches[1::2], strict=True))


def subset_residual(x: Float[Tensor, "total D"], branch: Residual, packing: Packing, subset: Subset) -> Tensor:
    """`x` plus the branch on the subset, scaled; [total, D]."""
    # Not x[rows]: its gradient allows for repeated rows, and sorts them all on CUDA.
    out = branch(x.index_select(0, subset.rows), subset.packing)
    return x.index_add(0, subset.rows, (out * subset.scale).to(x.dtype))


def naive_residual(x: Float[Tensor, "total D"], branch: Residual, packing: Packing, subset: Subset) -> Tensor:
    """The same, computed for everyone and then dropped: the reference."""
    factor = subset.scale.new_zeros(len(x), 1).index_copy(0, subset.rows, subset.scale)
    return x + (branch(x, packing) * factor).to(x.dtype)
