"""Points of an object's surface found in another photo of it: recall in centimetres on NAVI (Probe3D)."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torchvision.transforms.v2.functional as tv
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms import InterpolationMode

from dinov2_zoo.config import to_dict
from dinov2_zoo.config.correspondence import CorrespondenceConfig
from dinov2_zoo.data.augment import generator
from dinov2_zoo.data.preprocess import normalise, to_uint8
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.correspondence.geometry import patch_centres
from dinov2_zoo.evaluation.correspondence.matching import features_at, ratio_matches
from dinov2_zoo.evaluation.correspondence.navi import Frame, FramePairs, angle, read_depth
from dinov2_zoo.evaluation.dense.maps import patch_maps, view_size
from dinov2_zoo.evaluation.dense.pairs import open_photo
from dinov2_zoo.evaluation.encoders.encoder import LayeredEncoder
from dinov2_zoo.evaluation.encoders.reading import Place, cut, read_ahead
from dinov2_zoo.evaluation.record import Result
from dinov2_zoo.evaluation.workspace import Workspace

SIZE = 512
"""Side of the object's crop, pixels (Probe3D)."""
CELL = 4
"""Pixels of the crop between two points of the surface (Probe3D)."""
CENTIMETRES = (1, 2, 5)
"""Distances up to which a match is right (Probe3D)."""
DEGREES = (0, 30, 60, 90, 120)
"""Bounds of the angles between cameras by which recall at 2 cm is told apart (Probe3D)."""


@dataclass(frozen=True)
class Surface:
    """What a photo shows of an object."""

    image: Float[Tensor, "3 S S"]
    """The square around the object, normalised."""
    places: Float[Tensor, "n 2"]
    """Points on the object: x and y in the square, 0..1."""
    points: Float[Tensor, "n 3"]
    """The same in the camera's coordinates, metres."""


def read_surface(frame: Frame, size: int) -> Surface:
    """Cut an object out of its photo, and find the points of its surface that a grid of `CELL` pixels hits.

    Args:
        frame: Photo, depth, camera.
        size: Side of the cut-out, pixels.

    Raises:
        DataError: A file cannot be read, or photo and depth are not of one shape.
    """
    depth, photo = read_depth(frame.depth), open_photo(frame.photo)
    height, width = depth.shape
    (wide, high) = frame.size
    if max(abs(width * high - height * wide), abs(width * photo.height - height * photo.width)) > 2 * max(wide, width):
        raise DataError(
            f"{frame.photo} has {photo.width} x {photo.height} pixels, its depth {width} x {height}, its annotation "
            f"{wide} x {high}: they must have one ratio, so fetch them again."
        )
    rows, columns = ((depth > 0).any(dim).nonzero()[:, 0] for dim in (1, 0))
    box_height, box_width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
    side = max(box_height, box_width)
    top = _start(int(rows[0]), box_height, side, height)
    left = _start(int(columns[0]), box_width, side, width)

    scale = photo.width / width
    extent = max(1, round(side * scale))
    # What lies beyond the photo is black.
    square = tv.crop(to_uint8(photo), round(top * scale), round(left * scale), extent, extent)
    pixels = tv.resize(square, [size, size], InterpolationMode.BICUBIC, antialias=True)

    places = patch_centres(max(1, size // CELL))
    x, y = (left + places[:, 0] * side).floor().long(), (top + places[:, 1] * side).floor().long()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    z = torch.where(inside, depth[y.clamp(0, height - 1), x.clamp(0, width - 1)], 0)
    hit = z > 0
    focal = frame.focal * width / wide
    rays = [(x + 0.5 - width / 2) / focal, (y + 0.5 - height / 2) / focal, torch.ones_like(z)]
    points = torch.stack(rays, 1) * z[:, None]
    return Surface(normalise(pixels), places[hit], points[hit])


def _start(first: int, extent: int, side: int, length: int) -> int:
    """Where a square begins along an axis: centred on the object, moved inwards where the photo has room for it."""
    start = first - (side - extent) // 2
    return min(max(start, 0), length - side) if side <= length else start


@dataclass(frozen=True)
class _ReadSurfaces:
    """Reads pairs of photos."""

    data: FramePairs
    size: int

    def __call__(self, places: list[Place]) -> list[tuple[int, Surface, Surface]]:
        found: list[tuple[int, Surface, Surface]] = []
        for place in places:
            one, two = (read_surface(frame, self.size) for frame in self.data.pairs[place.item])
            found.append((place.item, one, two))
        return found


def surface_errors(
    maps: tuple[Float[Tensor, "D h w"], Float[Tensor, "D h w"]],
    surfaces: tuple[Surface, Surface],
    motion: Float[Tensor, "4 4"],
    matches: int,
) -> Float[Tensor, " m"]:
    """How far the best matches of two photos of an object are off, metres.

    Args:
        maps: Patch tokens of both; between patches features are interpolated, bicubically.
        surfaces: What both show.
        motion: From the first camera's coordinates to the second's, metres.
        matches: How many are judged, by the ratio test.
    """
    features = [
        features_at(tokens, surface.places, mode="bicubic") for tokens, surface in zip(maps, surfaces, strict=True)
    ]
    one, two = (numbers.cpu() for numbers in ratio_matches(features[0], features[1], matches))
    motion = motion.float()
    moved = surfaces[0].points[one] @ motion[:3, :3].T + motion[:3, 3]
    return (moved - surfaces[1].points[two]).norm(dim=1)


def measure_surfaces(
    encoder: LayeredEncoder, data: FramePairs, config: CorrespondenceConfig, workspace: Workspace
) -> Result:
    """Match points of two photos of an object, and measure in its 3D shape how far off they are.

    The headline is recall_2cm. Recalls are means over pairs; recall_2cm_30 is that of pairs 30 to 60 degrees apart.

    Raises:
        DataError: A file cannot be read or does not fit; names it.
        ConfigError: Crops are to be smaller than a patch.
    """
    size = view_size(config.size or SIZE, encoder.patch_size, "correspondence.size")
    context = workspace.context
    order = torch.randperm(len(data.pairs), generator=generator("navi pairs")).tolist()[: config.pairs]
    numbers = sorted(order)[context.rank :: context.world_size]
    mine: list[tuple[int, list[float]]] = []
    batches = cut(numbers, max(1, config.batch_size // 2), config.workers)
    for batch in read_ahead(_ReadSurfaces(data, size), batches, config.workers):
        maps = patch_maps(encoder, [surface.image for _, *both in batch for surface in both])
        for place, (number, one, two) in enumerate(batch):
            first, second = data.pairs[number]
            motion = second.pose @ torch.linalg.inv(first.pose)
            errors = surface_errors((maps[2 * place], maps[2 * place + 1]), (one, two), motion, config.matches)
            mine.append((number, [(errors < limit / 100).float().mean().item() for limit in CENTIMETRES]))
        workspace.say(f"{len(mine)} of {len(numbers)} pairs")
    recalls = dict(pair for part in context.gather(mine) for pair in part)
    metrics = {
        f"recall_{limit}cm": sum(found[place] for found in recalls.values()) / len(recalls)
        for place, limit in enumerate(CENTIMETRES)
    }
    for least, most in pairwise(DEGREES):
        inside = [found[1] for number, found in recalls.items() if least <= angle(*data.pairs[number]) < most]
        if inside:
            metrics[f"recall_2cm_{least}"] = sum(inside) / len(inside)
    notes = ["Last block, final norm, patch tokens; Probe3D's protocol, but the partners are drawn by other numbers."]
    protocol = {**to_dict(config), "kind": "navi", "size": size}
    return Result({**metrics, "pairs": float(len(recalls))}, "recall_2cm", protocol, data.facts(), notes)
