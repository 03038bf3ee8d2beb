"""Clips with a mask for every frame."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from dinov2_zoo.data.augment import generator
from dinov2_zoo.data.cutouts import Cutouts, backdrop, paste, scaled
from dinov2_zoo.data.package_photos import open_package
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.record import DataFacts, checksum

Clip = tuple[list[Image.Image], Int64[Tensor, "T H W"]]


@dataclass(frozen=True)
class VideoSet:
    """Clips that are read one at a time."""

    names: Sequence[str]
    """Name of each clip."""
    reader: Callable[[int], Clip]
    """Gives the frames, RGB of one size, and object numbers of all pixels, 0 for none."""
    identity: Sequence[object]
    """Tells these clips from others."""
    source: str = ""
    """How they were named."""

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Clip:
        """A clip.

        Raises:
            DataError: A frame or a mask is missing, damaged or of another size; names it.
        """
        frames, masks = self.reader(index)
        if len(frames) < 3 or not (masks[0] > 0).any():
            raise DataError(f"Clip {self.names[index]} needs three frames and an object in the first: leave it out.")
        return frames, masks

    def facts(self) -> DataFacts:
        """What a record says of the clips."""
        return DataFacts(self.source, {"clips": len(self)}, checksum([*self.names, *self.identity]))


def open_video(text: str) -> VideoSet:
    """Open clips.

    Args:
        text: One of
            - davis:/path: DAVIS 2017, JPEGImages/480p, Annotations/480p and ImageSets/2017/val.txt;
            - folder:/path: frames/<clip>/ and masks/<clip>/, PNG masks of object numbers with the frames' names;
            - composites:/path: eight clips of real cut-outs (a folder of PNGs for each class) that move over real
              photos, drawn from a seed.

    Raises:
        DataError: A part is missing; names it.
    """
    kind, _, path = text.partition(":")
    if kind not in _READERS or not path:
        raise DataError(f"There are no clips {text!r}: use {', '.join(f'{name}:/path' for name in _READERS)}.")
    return replace(_READERS[kind](Path(path).expanduser()), source=text)


def _davis(root: Path) -> VideoSet:
    file = root / "ImageSets/2017/val.txt"
    if not file.is_file():
        raise DataError(f"There is no {file}: name the folder that holds DAVIS 2017's JPEGImages and Annotations.")
    return _files(root / "JPEGImages/480p", root / "Annotations/480p", file.read_text().split())


def _folder(root: Path) -> VideoSet:
    if not (root / "frames").is_dir():
        raise DataError(f"There is no folder {root / 'frames'}: give frames/<clip>/ and masks/<clip>/.")
    return _files(root / "frames", root / "masks", sorted(c.name for c in (root / "frames").iterdir() if c.is_dir()))


def _files(frames: Path, masks: Path, names: list[str]) -> VideoSet:
    clips = {
        name: sorted(path for path in (frames / name).glob("*") if path.suffix in (".jpg", ".png")) for name in names
    }
    for name, found in clips.items():
        if not found:
            raise DataError(f"There are no frames in {frames / name}: complete the clip.")
        for frame in found:
            if not (mask := masks / name / f"{frame.stem}.png").is_file():
                raise DataError(f"There is no mask {mask} for {frame}: complete the clip.")

    def read(index: int) -> Clip:
        found = clips[names[index]]
        images = [_open(path).convert("RGB") for path in found]
        numbers = [_open(masks / names[index] / f"{path.stem}.png") for path in found]
        for path, image, mask in zip(found, images, numbers, strict=True):
            if image.size != images[0].size or mask.size != image.size:
                raise DataError(f"{path} or its mask is not of the size of the clip: make them equal.")
        # Masks are palette images: the indices count, not the colours.
        return images, torch.stack([torch.from_numpy(np.array(mask, dtype=np.int64)) for mask in numbers])

    return VideoSet(names, read, [path.name for found in clips.values() for path in found])


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
        return image
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path} cannot be decoded ({error}): fetch it again.") from error


CLIPS, FRAMES, WIDTH, HEIGHT = 8, 12, 320, 240
"""Number and size of composite clips (chosen here: a minute on a CPU)."""


def _composites(root: Path) -> VideoSet:
    cutouts, photos = Cutouts(root), open_package("photos/heldout")

    def read(index: int) -> Clip:
        """Two cut-outs cross a photo on straight paths, growing or shrinking a little; one may hide the other."""
        draw = torch.rand(16, generator=generator("clip", index), dtype=torch.float64).tolist()
        chosen = [int(draw[0] * len(cutouts.files)), int(draw[1] * len(cutouts.files))]
        ground, pieces = backdrop(photos, index, WIDTH, HEIGHT), [cutouts.read(number) for number in chosen]
        frames: list[Image.Image] = []
        masks: list[Image.Image] = []
        for time in range(FRAMES):
            scene, mask = ground.copy(), Image.new("L", ground.size, 0)
            for number, cutout in enumerate(pieces):
                at = draw[2 + 6 * number : 8 + 6 * number]
                size = (0.3 + 0.25 * at[0]) * HEIGHT * (1 + 0.2 * (at[1] - 0.5) * time / FRAMES)
                piece = scaled(cutout, round(size))
                share = time / (FRAMES - 1)
                x = ((1 - share) * at[2] + share * at[4]) * (WIDTH - piece.width)
                y = ((1 - share) * at[3] + share * at[5]) * (HEIGHT - piece.height)
                paste(scene, mask, piece, (round(x), round(y)), number + 1)
            frames.append(scene)
            masks.append(mask)
        return frames, torch.stack([torch.from_numpy(np.array(mask, dtype=np.int64)) for mask in masks])

    names = [f"composite-{number}" for number in range(CLIPS)]
    return VideoSet(names, read, [path.name for path, _ in cutouts.files])


_READERS: dict[str, Callable[[Path], VideoSet]] = {"davis": _davis, "folder": _folder, "composites": _composites}
