"""Cut-out photos with a transparent ground, pasted over other photos: scenes with masks true to the pixel."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dinov2_zoo.data.augment import generator
from dinov2_zoo.data.decode import DecodeError, decode
from dinov2_zoo.data.sources import Source
from dinov2_zoo.errors import DataError

OPAQUE = 127
"""Alpha above which a pixel belongs to the cut-out."""


class Cutouts:
    """PNG images in a folder for each class; those without a transparent ground are left out.

    Args:
        root: Folder of class folders.

    Raises:
        DataError: There is no such folder, no cut-out in one of them, or a file cannot be decoded.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(f"There is no folder {root}: name one with a folder of cut-out PNGs for each class.")
        self.classes = sorted(child.name for child in root.iterdir() if child.is_dir() and child.name[0] != ".")
        found = {name: [p for p in sorted((root / name).glob("*.png")) if _is_cutout(p)] for name in self.classes}
        empty = [name for name, files in found.items() if not files]
        if empty or not self.classes:
            raise DataError(
                f"No PNG in {root / (empty or [''])[0]} has a transparent ground: add cut-outs, or remove the folder."
            )
        self.files = [(path, number) for number, name in enumerate(self.classes) for path in found[name]]

    def read(self, index: int) -> Image.Image:
        """Cut-out `index`, RGBA, without the transparent margin."""
        image = _rgba(self.files[index][0])
        return image.crop(_solid(image).getbbox())

    def halves(self, seed: int = 0) -> tuple[list[int], list[int]]:
        """Numbers of the cut-outs, two thirds and one third of each class.

        Raises:
            DataError: A class has one only.
        """
        parts: tuple[list[int], list[int]] = ([], [])
        for number in range(len(self.classes)):
            mine = [i for i, (_, label) in enumerate(self.files) if label == number]
            if len(mine) < 2:
                raise DataError(f"{self.files[mine[0]][0]} is the only cut-out of its class: add one to measure on.")
            order = torch.randperm(len(mine), generator=generator("cutouts", seed, number)).tolist()
            cut = max(1, len(mine) // 3)
            parts[1].extend(mine[i] for i in order[:cut])
            parts[0].extend(mine[i] for i in order[cut:])
        return sorted(parts[0]), sorted(parts[1])


def backdrop(source: Source, index: int, width: int, height: int) -> Image.Image:
    """A photo cut at its centre to a size.

    Raises:
        DataError: It cannot be decoded.
    """
    try:
        photo = decode(source.read(index % len(source)))
    except DecodeError as error:
        raise DataError(f"{source.name(index % len(source))}: {error}") from error
    factor = max(width / photo.width, height / photo.height)
    large = photo.resize((max(width, round(photo.width * factor)), max(height, round(photo.height * factor))))
    left, top = (large.width - width) // 2, (large.height - height) // 2
    return large.crop((left, top, left + width, top + height))


def scaled(cutout: Image.Image, longest: int) -> Image.Image:
    """A cut-out with its longest side so many pixels."""
    factor = longest / max(cutout.size)
    return cutout.resize((max(1, round(cutout.width * factor)), max(1, round(cutout.height * factor))))


def paste(scene: Image.Image, mask: Image.Image, cutout: Image.Image, place: Sequence[int], number: int) -> None:
    """Paste a cut-out into a scene, and its number into the mask, in place.

    Args:
        scene: RGB.
        mask: Grey, of the scene's size.
        cutout: RGBA.
        place: Left and top, pixels; parts beyond the border are cut off.
        number: What the mask shows where the cut-out is.
    """
    at = (place[0], place[1])
    scene.paste(cutout.convert("RGB"), at, cutout.getchannel("A"))
    mask.paste(number, at, _solid(cutout))


def _rgba(path: Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            return file.convert("RGBA")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path} cannot be decoded ({error}): remove it.") from error


def _is_cutout(path: Path) -> bool:
    """Opaque in places and transparent in others."""
    solid = np.asarray(_solid(_rgba(path)))
    return bool(solid.any() and not solid.all())


def _solid(cutout: Image.Image) -> Image.Image:
    """Where a cut-out is opaque."""
    return Image.fromarray(np.asarray(cutout.getchannel("A")) > OPAQUE)
