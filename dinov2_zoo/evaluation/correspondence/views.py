"""Whether patches of two views of one photo find each other: needs no label, and no training."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.errors import ConfigError
from dinov2_zoo.evaluation.correspondence.geometry import patch_centres, transfer
from dinov2_zoo.evaluation.correspondence.matching import nearest_patches, row_parts
from dinov2_zoo.models.tokens import Tokens

REACH = 0.1
"""Distance up to which a match is right for PCK, as a share of the view's side (as SPair-71k's of the object's)."""


@dataclass(frozen=True)
class ViewMatches:
    """How well the patches of first views find their places in second ones, pair by pair; shares of 0..1.

    Counted are the patches of the first view whose centres lie in the second; NaN where there are none.
    """

    recall: Float[Tensor, " B"]
    """The nearest patch's centre is at most one patch from the true place."""
    pck: Float[Tensor, " B"]
    """It is at most `REACH` of the view's side from it."""
    exact: Float[Tensor, " B"]
    """It is the patch in which the true place lies."""
    chance: Float[Tensor, " B"]
    """`recall` of patches drawn at random."""
    same_place: Float[Tensor, " B"]
    """`recall` of a model that knows positions only, and takes the same place of the second view."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "ViewMatches":
        """The same function of each."""
        return ViewMatches(*(function(getattr(self, field.name)) for field in fields(self)))

    def means(self) -> dict[str, float]:
        """The mean over pairs of each, pairs without a common patch left out."""
        return {field.name: getattr(self, field.name).nanmean().item() for field in fields(self)}

    @staticmethod
    def cat(parts: "Sequence[ViewMatches]") -> "ViewMatches":
        """Those of several batches as one."""
        return ViewMatches(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(ViewMatches)))


@torch.no_grad()
def view_correspondence(first: Tokens, second: Tokens, geometry: Float[Tensor, "B 3 3"]) -> ViewMatches:
    """Match the patches of pairs of views by cosine.

    Nothing of size [all patches, all patches] is made but within a pair, and there in parts; nothing waits for the
    device.

    Args:
        first: Of the first views, patches [B, N, D] of a square grid.
        second: Of the second views; the grid may be another.
        geometry: From places in the first view to places in the second, both relative, as `geometry.between` gives it.

    Raises:
        ConfigError: A grid is not square.
    """
    device = first.patches.device
    mine, theirs = (patch_centres(_side(tokens), device) for tokens in (first, second))
    side = _side(second)
    truth = transfer(mine.expand(len(geometry), -1, 2), geometry.to(device, torch.float32))
    inside = ((truth >= 0) & (truth < 1)).all(2)
    found = theirs[nearest_patches(first.patches, second.patches)]
    error = (found - truth).norm(dim=2) * side
    cell = ((found * side).floor() == (truth * side).floor()).all(2)
    still = (mine - truth).norm(dim=2) * side
    # An equal number of patches around every place would make this a constant: it is less at the border.
    parts = row_parts(len(truth), len(mine), len(theirs))
    exact = "donot_use_mm_for_euclid_dist"
    apart = (torch.cdist(truth[:, part], theirs[None], compute_mode=exact) for part in parts)
    lucky = torch.cat([(distance * side <= 1).float().mean(2) for distance in apart], 1)

    def share(right: Tensor) -> Tensor:
        return torch.where(inside, right.float(), 0).sum(1) / inside.sum(1)

    return ViewMatches(
        share(error <= 1),
        share(error <= REACH * side),
        share(cell),
        share(lucky),
        share(still <= 1),
    )


def _side(tokens: Tokens) -> int:
    count = tokens.patches.shape[1]
    side = math.isqrt(count)
    if side * side != count:
        raise ConfigError(f"A grid of {count} patches is not square: give square views.")
    return side
