"""Scenes for segmentation, made of real cut-outs over real photos: their masks are true to the pixel."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from dinov2_zoo.data.augment import generator
from dinov2_zoo.data.cutouts import Cutouts, backdrop, paste, scaled
from dinov2_zoo.data.package_photos import open_package
from dinov2_zoo.data.sources import Source

WIDTH, HEIGHT = 320, 240
"""Size of a scene, pixels (chosen here)."""
TRAIN, TEST = 240, 30
"""Scenes (chosen here)."""


class CompositeScenes:
    """Scenes of one to three cut-outs each, drawn from a seed and always the same.

    Args:
        cutouts: Real objects; their class numbers in the masks begin at 1, the ground is 0.
        chosen: Which of them.
        photos: Backgrounds.
        count: Scenes.
        part: Word that tells this set of scenes from another.
    """

    def __init__(self, cutouts: Cutouts, chosen: Sequence[int], photos: Source, count: int, part: str) -> None:
        self._cutouts, self._chosen, self._photos, self._count, self._part = cutouts, chosen, photos, count, part

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        """Which scene it is, and a cut-out in it."""
        return f"scene {index} of {self._part}, with {self._cutouts.files[self._pieces(index)[0]][0].name}"

    def _pieces(self, index: int) -> list[int]:
        """Which cut-outs are in a scene, the backmost first."""
        draw = torch.rand(4, generator=generator("scene", self._part, index), dtype=torch.float64).tolist()
        return [self._chosen[int(number * len(self._chosen))] for number in draw[: 1 + int(3 * draw[3])]]

    def read(self, index: int) -> tuple[Image.Image, Int64[Tensor, "H W"]]:
        """See `PairSource.read`."""
        randomness = generator("places", self._part, index)
        photo = int(torch.randint(len(self._photos), (), generator=randomness))
        scene = backdrop(self._photos, photo, WIDTH, HEIGHT)
        mask = Image.new("L", scene.size, 0)
        for piece in self._pieces(index):
            draw = torch.rand(4, generator=randomness, dtype=torch.float64).tolist()
            cutout = scaled(self._cutouts.read(piece), round((0.35 + 0.55 * draw[0]) * HEIGHT))
            if draw[1] < 0.5:
                cutout = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            place = (int(draw[2] * (WIDTH - cutout.width + 1)), int(draw[3] * (HEIGHT - cutout.height + 1)))
            paste(scene, mask, cutout, place, self._cutouts.files[piece][1] + 1)
        return scene, torch.from_numpy(np.array(mask, dtype=np.int64))


def open_composites(root: Path) -> tuple[CompositeScenes, CompositeScenes, int]:
    """Scenes to train on, to be measured on, and the number of classes; they share no cut-out and no photo.

    Raises:
        DataError: There are no cut-outs, or the packages with the photos are missing.
    """
    cutouts = Cutouts(root)
    most, fewer = cutouts.halves()
    train = CompositeScenes(cutouts, most, open_package("photos/train"), TRAIN, "train")
    test = CompositeScenes(cutouts, fewer, open_package("photos/heldout"), TEST, "test")
    return train, test, 1 + len(cutouts.classes)
