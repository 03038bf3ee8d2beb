"""Patch features as colours: their first three principal components become red, green and blue, next to the photo.

One basis, fitted on the teacher's features of all photos shown, colours every column, and one scale per colour too. So
equal colours mean equal features: a student that has learnt its teacher's space shows its teacher's picture.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# Share of the teacher's values on each side that may saturate: single odd patches must not set the scale.
CLIP = 0.01

BACKGROUND, INK = (255, 255, 255), (60, 60, 67)
GAP, HEADING = 8, 30


@dataclass(frozen=True)
class ColourBasis:
    """A way to colour features of one space."""

    mean: Float[Tensor, " D"]
    components: Float[Tensor, "D 3"]
    low: Float[Tensor, " 3"]
    """Coordinate that is shown as 0, per component."""
    high: Float[Tensor, " 3"]
    """Coordinate that is shown as full colour."""

    def colours(self, features: Float[Tensor, "... D"]) -> Float[Tensor, "... 3"]:
        """Red, green, blue in 0..1."""
        coordinates = (features.float().cpu() - self.mean) @ self.components
        return ((coordinates - self.low) / (self.high - self.low)).clamp(0, 1)


def fit_colours(features: Float[Tensor, "n D"]) -> ColourBasis:
    """Fit the first three principal components of some features and a robust range of each.

    The sign of a component is arbitrary; here its largest entry is positive, so that pictures can be repeated.

    Args:
        features: At least 4 rows and 3 columns.
    """
    features = features.float().cpu()
    assert len(features) >= 4 and features.shape[1] >= 3, "too few features for three components"
    mean = features.mean(0)
    centred = (features - mean).double()
    _, vectors = torch.linalg.eigh(centred.T @ centred)  # ascending
    components = vectors[:, -3:].flip(1)
    largest = components.gather(0, components.abs().argmax(0, keepdim=True))
    components = components * largest.sign()
    coordinates = (centred @ components).float()
    # Sorting, not torch.quantile: that refuses more than 16 million values.
    ordered = coordinates.sort(0).values
    cut = int(CLIP * (len(ordered) - 1))
    low, high = ordered[cut], ordered[-1 - cut]
    return ColourBasis(mean, components.float(), low, torch.maximum(high, low + 1e-6))


def feature_image(patches: Float[Tensor, "N D"], basis: ColourBasis, size: int) -> Image.Image:
    """One image's patch features as a picture of size x size pixels.

    Args:
        patches: A square grid, row-major.
        basis: From `fit_colours`, same D.
        size: Pixels; colours are interpolated bicubically between patch centres.
    """
    side = math.isqrt(len(patches))
    assert side * side == len(patches), "not a square grid"
    colours = basis.colours(patches).reshape(side, side, 3)
    small = Image.frombytes("RGB", (side, side), bytes((colours * 255).round().byte().flatten().tolist()))
    return small.resize((size, size), Image.Resampling.BICUBIC)


def feature_pca_grid(
    photos: Sequence[Image.Image],
    teacher_maps: Float[Tensor, "B N D"],
    student_maps: Mapping[str, Float[Tensor, "B M D"]],
    *,
    tile: int = 224,
) -> Image.Image:
    """One picture: a row per photo with columns photo | teacher | one per student map, all in the teacher's colours.

    Args:
        photos: What the models saw, cropped as they saw it; square.
        teacher_maps: The teacher's patch tokens of the same photos, square grids.
        student_maps: {heading: patch tokens in the teacher's space}, e.g. "student before" and "student after"; the
            grid may have another size.
        tile: Side of each small picture, pixels.
    """
    assert len(photos) == len(teacher_maps) and all(len(maps) == len(photos) for maps in student_maps.values())
    basis = fit_colours(teacher_maps.flatten(0, 1))
    columns = {"teacher": teacher_maps, **student_maps}
    width = (1 + len(columns)) * (tile + GAP) - GAP
    sheet = Image.new("RGB", (width, HEADING + len(photos) * (tile + GAP) - GAP), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=16)
    for column, heading in enumerate(["photo", *columns]):
        draw.text((column * (tile + GAP) + 1, 5), heading, fill=INK, font=font)
    for row, photo in enumerate(photos):
        top = HEADING + row * (tile + GAP)
        pictures = [photo.convert("RGB").resize((tile, tile), Image.Resampling.LANCZOS)]
        pictures += [feature_image(maps[row], basis, tile) for maps in columns.values()]
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (column * (tile + GAP), top))
    return sheet
