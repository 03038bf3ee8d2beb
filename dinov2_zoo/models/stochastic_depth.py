"""Efficient stochastic depth: a residual branch runs on a random subset of the sequences only (paper, section 5).

Instead of computing a branch for everyone and dropping some results, those sequences are left out beforehand; the
others' results are scaled up, so that the expectation is that of the whole. Attention and feed-forward draw apart, and
so does each group of crops. The draws are made ahead, outside of the network: activation checkpointing then recomputes
with the same ones, and a restarted run repeats them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

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
    """Sequences / kept sequences, of each token's group."""


def draw_subsets(
    seeds: Int64[Tensor, " B"],
    views: Sequence[int],
    packing: Packing,
    *,
    depth: int,
    rate: float,
    device: torch.device,
) -> list[tuple[Subset, Subset]]:
    """Subsets for attention and feed-forward of every block; max(1, int(b * (1 - rate))) of a group's b sequences.

    Each image's sequences get random keys, which follow from its seed alone; the smallest of a group stay.

    Args:
        seeds: One per image: `Batch.seeds`.
        views: Crops per image in each group; a group's sequences are ordered by view, then image.
        packing: How the whole row divides into sequences.
        depth: Blocks.
        rate: Share of sequences left out, the same for all blocks (official).
        device: Where the row is.
    """
    keys = torch.stack(
        [torch.rand(sum(views), 2 * depth, generator=torch.Generator().manual_seed(s)) for s in seeds.tolist()], dim=1
    )  # [views, B, branches]
    starts: list[Tensor] = []
    kept_groups: list[tuple[int, int]] = []
    scales: list[Tensor] = []
    first = 0
    for group, (sequences, tokens) in zip(keys.split(list(views)), packing.groups, strict=True):
        kept = max(1, int(sequences * (1 - rate)))
        chosen = group.flatten(0, 1).argsort(dim=0)[:kept].sort(dim=0).values.T  # [branches, kept]
        starts.append(first + chosen * tokens)
        kept_groups.append((kept, tokens))
        scales.append(torch.full((kept * tokens, 1), sequences / kept, device=device))
        first += sequences * tokens
    # One small transfer for all blocks; the device itself counts on from where sequences start.
    on_device = torch.cat(starts, dim=1).to(device, non_blocking=True).split([kept for kept, _ in kept_groups], dim=1)
    rows = torch.cat(
        [
            (start[..., None] + torch.arange(tokens, device=device)).flatten(1)
            for start, (_, tokens) in zip(on_device, kept_groups, strict=True)
        ],
        dim=1,
    )
    scale, kept_packing = torch.cat(scales), Packing(tuple(kept_groups))
    branches = [Subset(row, kept_packing, scale) for row in rows]
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
