"""SPair-71k: pairs of photos of one category with the keypoints that both show (Min et al. 2019)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.record import DataFacts, checksum

SPLITS = ("trn", "val", "test")


@dataclass(frozen=True)
class KeypointPair:
    """Two photos and what they have in common."""

    name: str
    """The annotation's file name."""
    category: str
    images: tuple[str, str]
    """File names of the photo that asks and of the one that answers, in the category's folder."""
    sizes: tuple[tuple[int, int], tuple[int, int]]
    """Their widths and heights, pixels."""
    points: Float[Tensor, "n 2"]
    """Keypoints in the first, x and y, pixels, the centre of the first pixel at (0.5, 0.5)."""
    truths: Float[Tensor, "n 2"]
    """The same keypoints in the second."""
    extent: float
    """Longer side of the object's box in the second, pixels."""
    viewpoint: int
    """How far the viewpoints are apart: 0, 1 or 2."""


@dataclass(frozen=True)
class KeypointPairs:
    """All pairs of a split."""

    root: Path
    pairs: Sequence[KeypointPair]
    source: str

    def photo(self, category: str, image: str) -> Path:
        """Where a photo lies."""
        return self.root / "JPEGImages" / category / image

    def facts(self) -> DataFacts:
        """What a record says of the pairs."""
        truths = [f"{pair.name} {pair.extent} {pair.truths.tolist()}" for pair in self.pairs]
        images = {(pair.category, name) for pair in self.pairs for name in pair.images}
        return DataFacts(self.source, {"pairs": len(self.pairs), "images": len(images)}, checksum(truths))


def open_spair(path: str) -> KeypointPairs:
    """Open the data set.

    Args:
        path: Folder that holds PairAnnotation and JPEGImages, or the one above; perhaps with @val or @trn for another
            split than test.

    Raises:
        DataError: A part is missing or does not fit; names it.
    """
    folder, at, split = path.rpartition("@")
    folder, split = (folder, split) if at and split in SPLITS else (path, "test")
    root = Path(folder).expanduser()
    root = root / "SPair-71k" if (root / "SPair-71k").is_dir() else root
    files = sorted((root / "PairAnnotation" / split).glob("*.json"))
    if not files:
        raise DataError(f"There are no pairs in {root / 'PairAnnotation' / split}: name the folder of SPair-71k.")
    pairs = [_pair(file) for file in files]
    data = KeypointPairs(root, [pair for pair in pairs if len(pair.points)], f"spair:{path}")
    if not data.pairs:
        raise DataError(f"No pair of {root / 'PairAnnotation' / split} has a keypoint: fetch the data set again.")
    for category, image in sorted({(pair.category, name) for pair in data.pairs for name in pair.images}):
        if not data.photo(category, image).is_file():
            raise DataError(f"There is no {data.photo(category, image)}, which the pairs name: complete the data set.")
    return data


def _pair(file: Path) -> KeypointPair:
    try:
        found: dict[str, Any] = json.loads(file.read_text())
        points, truths = (torch.tensor(found[key], dtype=torch.float32).view(-1, 2) for key in ("src_kps", "trg_kps"))
        left, top, right, bottom = map(float, found["trg_bndbox"])
        source, target = ((int(size[0]), int(size[1])) for size in (found["src_imsize"], found["trg_imsize"]))
        pair = KeypointPair(
            file.name,
            str(found["category"]),
            (str(found["src_imname"]), str(found["trg_imname"])),
            (source, target),
            points + 0.5,
            truths + 0.5,
            max(right - left, bottom - top),
            int(found["viewpoint_variation"]),
        )
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{file} is no annotation of a pair ({error!r}): fetch it again.") from error
    if len(points) != len(truths) or pair.extent <= 0:
        raise DataError(f"{file} has {len(points)} and {len(truths)} keypoints, or an empty box: fetch it again.")
    return pair
