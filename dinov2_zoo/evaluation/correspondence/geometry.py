"""Where a point of one view of a photo lies in another: homographies, exact, whatever the resolution.

Coordinates are (x, y), x to the right and y down. Those of a view are relative, its corners (0, 0) and (1, 1): a
geometry serves any size and any patch. Those of a photo are pixels, the centre of the first at (0.5, 0.5).
"""

import math

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms import InterpolationMode

from dinov2_zoo.config.correspondence import ViewsConfig

UNIT = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
"""Corners of a view: upper left, upper right, lower right, lower left."""

Quad = Float[Tensor, "4 2"]
"""Where a view's corners lie in its photo, in the order of `UNIT`, pixels, fp64."""


def homography(source: Float[Tensor, "4 2"], target: Float[Tensor, "4 2"]) -> Float[Tensor, "3 3"]:
    """The projective map that takes four points to four others; no three of either lie on a line. fp64."""
    x, y = source.double().unbind(1)
    u, v = target.double().unbind(1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    rows = [
        torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], 1),
        torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], 1),
    ]
    entries = torch.linalg.solve(torch.cat(rows), torch.cat([u, v]))
    return torch.cat([entries, one[:1]]).view(3, 3)


def between(first: Quad, second: Quad) -> Float[Tensor, "3 3"]:
    """The geometry of two views of a photo: from places in the first to places in the second."""
    # The inverse, not a second solution: so the homogeneous coordinate stays positive where a place can be seen.
    return torch.linalg.inv(homography(UNIT, second)) @ homography(UNIT, first)


def transfer(points: Float[Tensor, "*n p 2"], geometry: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n p 2"]:
    """Where points go; infinity for those that lie beyond the horizon of the map."""
    homogeneous = F.pad(points, (0, 1), value=1.0) @ geometry.transpose(-1, -2)
    depth = homogeneous[..., 2:]
    return torch.where(depth > 0, homogeneous[..., :2] / depth, torch.inf)


def patch_centres(side: int, device: torch.device | None = None) -> Float[Tensor, "n 2"]:
    """Places of the patches of a square view, row-major, in 0..1."""
    line = (torch.arange(side, device=device, dtype=torch.float32) + 0.5) / side
    return torch.stack([line.repeat(side), line.repeat_interleave(side)], 1)


def draw_quads(width: int, height: int, config: ViewsConfig, randomness: torch.Generator) -> tuple[Quad, Quad]:
    """Choose two views of a photo, both inside it.

    The first is an upright square; the second lies around the same place, and is turned, mirrored and seen aslant.

    Args:
        width: Of the photo, pixels.
        height: Of the photo, pixels.
        config: Ranges.
        randomness: Of all choices.
    """
    draw = torch.rand(16, generator=randomness, dtype=torch.float64)
    least, most = config.scale
    sides = (least + (most - least) * draw[:2]) * min(width, height)
    photo = torch.tensor([width, height], dtype=torch.float64)

    square = (UNIT - 0.5) * sides[0]
    centre = sides[0] / 2 + draw[2:4] * (photo - sides[0])

    corners = UNIT - 0.5 + config.perspective * (2 * draw[4:12].view(4, 2) - 1)
    angle = math.radians(config.rotation) * (2 * draw[12].item() - 1)
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    corners = corners @ turn * sides[1]
    if draw[13] < config.flip:
        corners = corners[[1, 0, 3, 2]]
    reach = corners.abs().amax(0)
    shrink = (photo / 2 / reach).amin().clamp(max=1)
    corners, reach = corners * shrink, reach * shrink
    other = torch.clamp(centre + (draw[14:16] - 0.5) * sides[0] / 2, reach, photo - reach)
    return square + centre, corners + other


def render(pixels: UInt8[Tensor, "3 H W"], quad: Quad, size: int) -> UInt8[Tensor, "3 S S"]:
    """The view of a photo whose corners lie at `quad`.

    The part around it is scaled first, with antialiasing, so that a pixel of it is about one of the view's.

    Args:
        pixels: 0..255.
        quad: Corners.
        size: Side of the view, pixels.
    """
    low = quad.amin(0).floor().long() - 2
    high = quad.amax(0).ceil().long() + 2
    left, top = low.clamp(min=0).tolist()
    right, bottom = torch.minimum(high, torch.tensor([pixels.shape[2], pixels.shape[1]])).tolist()
    part = pixels[:, top:bottom, left:right]
    quad = quad - torch.tensor([left, top], dtype=torch.float64)
    x, y = quad.unbind(1)
    area = 0.5 * (x * y.roll(-1) - y * x.roll(-1)).sum().abs().item()  # the shoelace formula
    factor = size / math.sqrt(area)
    if factor < 1:
        sides = [max(1, round(side * factor)) for side in part.shape[1:]]
        quad = quad * torch.tensor([sides[1] / part.shape[2], sides[0] / part.shape[1]], dtype=torch.float64)
        part = tv.resize(part, sides, InterpolationMode.BICUBIC, antialias=True)
    places = transfer(patch_centres(size).double(), homography(UNIT, quad))
    grid = 2 * places / torch.tensor([part.shape[2], part.shape[1]], dtype=torch.float64) - 1
    grid = grid.float().view(1, size, size, 2)
    view = F.grid_sample(part[None].float(), grid, "bicubic", padding_mode="border", align_corners=False)
    return view[0].round().clamp(0, 255).to(torch.uint8)
