"""NAVI: photos of scanned objects, each with the object's depth and the camera's pose (Jampani et al. 2023)."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dinov2_zoo.data.augment import generator
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.record import DataFacts, checksum

COLLECTIONS = ("wild_set", "multiview")
MOST_DEGREES = 120.0
"""Largest angle between the cameras of a pair (Probe3D)."""
EVERY = 4
"""Of the photos only every fourth asks for a partner (Probe3D)."""
DISPARITY = 65_535 * 10.0
"""Depth files hold 16-bit numbers that are 1 / millimetres times this; 0 is no object (NAVI's data_util)."""


@dataclass(frozen=True)
class Frame:
    """A photo and what is known of its camera."""

    photo: Path
    depth: Path
    size: tuple[int, int]
    """Width and height for which the focal length holds, pixels."""
    focal: float
    """Pixels; the optical axis goes through the middle."""
    pose: Float[Tensor, "4 4"]
    """From the object's coordinates to the camera's (x right, y down, z away), metres, fp64."""


@dataclass(frozen=True)
class FramePairs:
    """Pairs of photos of one object."""

    pairs: Sequence[tuple[Frame, Frame]]
    source: str

    def facts(self) -> DataFacts:
        """What a record says of the pairs."""
        names = [f"{frame.photo} {frame.pose.tolist()}" for pair in self.pairs for frame in pair]
        return DataFacts(self.source, {"pairs": len(self.pairs)}, checksum(names))


def open_navi(path: str) -> FramePairs:
    """Open the data set, and choose a partner for every fourth photo, as Probe3D does, though by other random numbers.

    Args:
        path: Folder of version 1.0 or 1.5, with a folder for each object, or the one above; with @multiview the photos
            of one scene are paired, else those of the object in different places (wild_set).

    Raises:
        DataError: A part is missing or does not fit; names it.
    """
    folder, at, collection = path.rpartition("@")
    folder, collection = (folder, collection) if at and collection in COLLECTIONS else (path, "wild_set")
    root = Path(folder).expanduser()
    scenes = sorted(p.parent for deep in ("*", "*/*") for p in root.glob(f"{deep}/{collection}*/annotations.json"))
    if not scenes:
        raise DataError(f"There is no {root}/<object>/{collection}*/annotations.json: name the folder of NAVI.")
    frames = [(frame, others) for others in map(_frames, scenes) for frame in others]
    pairs: list[tuple[Frame, Frame]] = []
    for frame, others in frames[::EVERY]:
        if partners := [other for other in others if 0 < angle(frame, other) <= MOST_DEGREES]:
            randomness = generator("navi", *frame.photo.parts[-4:])
            pairs.append((frame, partners[int(torch.randint(len(partners), (), generator=randomness))]))
    if not pairs:
        raise DataError(f"No two photos of {root} are at most {MOST_DEGREES:.0f} degrees apart: complete the data set.")
    return FramePairs(pairs, f"navi:{path}")


def _frames(scene: Path) -> list[Frame]:
    """The photos of a scene, by name."""
    file = scene / "annotations.json"
    try:
        entries: list[dict[str, Any]] = json.loads(file.read_text())
        frames = [_frame(scene, entry) for entry in entries]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file} is no annotation of NAVI ({error!r}): fetch it again.") from error
    for frame in frames:
        if lacking := next((path for path in (frame.photo, frame.depth) if not path.is_file()), None):
            raise DataError(f"There is no {lacking}, which {file} names: complete the data set.")
    return sorted(frames, key=lambda frame: frame.photo.name)


def _frame(scene: Path, entry: dict[str, Any]) -> Frame:
    name, camera = str(entry["filename"]), entry["camera"]
    height, width = (int(side) for side in entry["image_size"])
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = rotation(torch.tensor([float(number) for number in camera["q"]], dtype=torch.float64))
    pose[:3, 3] = torch.tensor([float(number) / 1000 for number in camera["t"]], dtype=torch.float64)
    depth = scene / "depth" / f"{Path(name).stem}.png"
    return Frame(scene / "images" / name, depth, (width, height), float(camera["focal_length"]), pose)


def rotation(quaternion: Float[Tensor, "4"]) -> Float[Tensor, "3 3"]:
    """The matrix of a quaternion w, x, y, z of any length but 0."""
    w, x, y, z = (quaternion / quaternion.norm()).tolist()
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.tensor(rows, dtype=quaternion.dtype)


def angle(one: Frame, other: Frame) -> float:
    """Between two cameras' orientations, degrees."""
    trace = (one.pose[:3, :3] * other.pose[:3, :3]).sum().item()
    return math.degrees(math.acos(min(1.0, max(-1.0, (trace - 1) / 2))))


def read_depth(path: Path) -> Float[Tensor, "H W"]:
    """Metres, 0 where there is no object.

    Raises:
        DataError: It cannot be read, or shows no object.
    """
    try:
        with Image.open(path) as file:
            numbers = torch.from_numpy(np.array(file).astype(np.float32))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path} cannot be read ({error}): fetch it again.") from error
    if numbers.ndim != 2 or not (numbers > 0).any():
        raise DataError(f"{path} shows no object, or holds colours: fetch it again.")
    return torch.where(numbers > 0, DISPARITY / 1000 / numbers, 0)
