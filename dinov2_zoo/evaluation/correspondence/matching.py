"""Matches of patches by cosine: nearest places, features between patches, the ratio test."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from dinov2_zoo.evaluation.neighbours import nearest

PRODUCTS = 2**24
"""Cosines that are there at a time (64 MB): bounds memory, changes nothing else."""
QUERIES = 4096
"""Points compared with all others at a time, likewise."""


def row_parts(images: int, rows: int, columns: int) -> Iterator[slice]:
    """Parts of the rows of some matrices whose products fit into `PRODUCTS`."""
    step = max(1, PRODUCTS // max(1, images * columns))
    for start in range(0, rows, step):
        yield slice(start, start + step)


def nearest_patches(first: Float[Tensor, "B N D"], second: Float[Tensor, "B M D"]) -> Int64[Tensor, "B N"]:
    """Number of the patch of the second image, by cosine, that is nearest to each of the first."""
    first, second = F.normalize(first.float(), dim=2), F.normalize(second.float(), dim=2).transpose(1, 2)
    parts = row_parts(len(first), first.shape[1], second.shape[2])
    return torch.cat([(first[:, part] @ second).argmax(2) for part in parts], 1)


def features_at(
    tokens: Float[Tensor, "D h w"], places: Float[Tensor, "p 2"], *, mode: str = "bilinear"
) -> Float[Tensor, "p D"]:
    """L2-normalised features between patches, interpolated; at the border those of the outermost patches.

    Args:
        tokens: A map.
        places: Relative, x to the right and y down, 0..1.
        mode: "bilinear" or "bicubic".
    """
    grid = (2 * places.to(tokens) - 1)[None, None]
    sampled = F.grid_sample(tokens[None], grid, mode, padding_mode="border", align_corners=False)
    return F.normalize(sampled[0, :, 0].T, dim=1)


def ratio_matches(
    first: Float[Tensor, "n D"], second: Float[Tensor, "m D"], most: int
) -> tuple[Int64[Tensor, " k"], Int64[Tensor, " k"]]:
    """The most distinct matches of points of one set to points of another (Lowe's ratio test, as in Probe3D).

    A match is the more distinct, the smaller its cosine distance is beside that of the second nearest.

    Args:
        first: Features of the points that ask, L2-normalised.
        second: Features of those that answer.
        most: Matches to keep.

    Returns:
        Numbers of the points in the first and in the second set.
    """
    found = [nearest(second, part, 2) for part in first.split(QUERIES)]
    distance = (1 - torch.cat([cosine for cosine, _ in found])).clamp(min=1e-9)
    where = torch.cat([places[:, 0] for _, places in found])
    ratio = distance[:, 0] / distance[:, -1]
    chosen = ratio.argsort(stable=True)[:most]
    return chosen, where[chosen]
