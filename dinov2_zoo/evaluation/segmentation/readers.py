"""Data sets of semantic segmentation: photos with a class number for every pixel."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from dinov2_zoo.data.image_sets import images_below
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.dense.pairs import PairSource, read_photo
from dinov2_zoo.evaluation.record import DataFacts, checksum
from dinov2_zoo.evaluation.segmentation.composites import open_composites
from dinov2_zoo.evaluation.segmentation.metrics import IGNORED

CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Label ids of the 19 classes that count, in the order of their class numbers (cityscapesScripts)."""


@dataclass(frozen=True)
class SegmentationData:
    """Images with masks, and the rules of their protocol."""

    train: PairSource
    """To train on."""
    test: PairSource
    """To be measured on."""
    classes: int
    """Their number."""
    short_side: int = 512
    """Short side of the scaled images, pixels."""
    crop: int = 512
    """Side of training crops and of the test window, pixels."""
    source: str = ""
    """How the data were named."""

    def facts(self) -> DataFacts:
        """What a record says of the images."""
        sets = {"train": self.train, "test": self.test}
        names = [part.name(index) for part in sets.values() for index in range(len(part))]
        return DataFacts(
            self.source, {name: len(part) for name, part in sets.items()}, checksum([*names, self.classes])
        )


class MaskedFiles:
    """Photos and masks.

    Args:
        pairs: Photo and mask, a PNG of numbers (grey, or indices of a palette).
        classes: Class of each number in the masks; `IGNORED` for those that do not count.
    """

    def __init__(self, pairs: Sequence[tuple[Path, Path]], classes: Mapping[int, int]) -> None:
        self._pairs = pairs
        self._table = np.full(256, -1, dtype=np.int64)
        for number, name in classes.items():
            self._table[number] = name

    def __len__(self) -> int:
        return len(self._pairs)

    def name(self, index: int) -> str:
        """The photo's path."""
        return str(self._pairs[index][0])

    def read(self, index: int) -> tuple[Image.Image, Int64[Tensor, "H W"]]:
        """See `PairSource.read`."""
        photo_file, mask_file = self._pairs[index]
        numbers = mask_numbers(mask_file)
        photo = read_photo(photo_file, mask_file, (numbers.shape[0], numbers.shape[1]))
        mask = self._table[numbers]
        if (mask < 0).any():
            unknown = int(numbers[mask < 0][0])
            raise DataError(f"{mask_file} holds the number {unknown}, which is no class: correct the mask.")
        return photo, torch.from_numpy(mask)


def mask_numbers(path: Path) -> np.ndarray:
    """Numbers in a mask, [H, W] of 0..255.

    Raises:
        DataError: It cannot be read, or holds colours.
    """
    try:
        with Image.open(path) as file:
            if file.mode not in ("L", "P", "1", "I", "I;16"):
                raise DataError(f"{path} holds colours ({file.mode}): give masks of class numbers, grey or palette.")
            numbers = np.array(file)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path} cannot be read ({error}): fetch it again.") from error
    if numbers.max(initial=0) > 255:
        raise DataError(f"{path} holds the number {numbers.max()}, above 255: give class numbers.")
    return numbers.astype(np.uint8)


def open_segmentation(text: str) -> SegmentationData:
    """Open a data set.

    Args:
        text: One of
            - ade20k:/path: ADEChallengeData2016, 150 classes; 0 in its masks does not count;
            - voc:/path: VOCdevkit/VOC2012, 21 classes; trainaug.txt and SegmentationClassAug are used if there;
            - cityscapes:/path: leftImg8bit and gtFine (labelIds), 19 classes;
            - folder:/path: train/ and test/, each with images/ and masks/ of equal names, PNG of class numbers, of
              which 255 does not count; classes.txt names the classes, a line each (without it the training masks are
              searched);
            - composites:/path: real cut-outs (a folder of PNGs with transparent ground for each class) pasted over real
              photos; no cut-out and no photo is in both parts.

    Raises:
        DataError: A file is missing or does not fit; names it.
    """
    kind, _, path = text.partition(":")
    if kind not in _READERS or not path:
        raise DataError(f"There are no masks {text!r}: use {', '.join(f'{name}:/path' for name in _READERS)}.")
    return replace(_READERS[kind](Path(path).expanduser()), source=text)


def _ade20k(root: Path) -> SegmentationData:
    root = root / "ADEChallengeData2016" if (root / "ADEChallengeData2016").is_dir() else root
    classes = {0: IGNORED} | {number: number - 1 for number in range(1, 151)}
    train, test = (
        MaskedFiles(_matched(root / "images" / part, root / "annotations" / part), classes)
        for part in ("training", "validation")
    )
    return SegmentationData(train, test, 150)


def _matched(photos: Path, masks: Path, photo_end: str = "", mask_end: str = "") -> list[tuple[Path, Path]]:
    """Photos and the masks whose names differ in the ending only."""
    pairs: list[tuple[Path, Path]] = []
    for name in images_below(photos):
        stem = name.rpartition(".")[0]
        if stem.endswith(photo_end):
            mask = masks / f"{stem[: len(stem) - len(photo_end)]}{mask_end}.png"
            if not mask.is_file():
                raise DataError(f"There is no mask {mask} for {photos / name}: add it.")
            pairs.append((photos / name, mask))
    return pairs


def _voc(root: Path) -> SegmentationData:
    inner = root / "VOCdevkit" / "VOC2012"
    root = inner if inner.is_dir() else root
    lists = root / "ImageSets" / "Segmentation"
    augmented = (lists / "trainaug.txt").is_file()
    classes = {number: number for number in range(21)} | {255: IGNORED}

    def part(file: str, masks: str) -> MaskedFiles:
        if not (lists / file).is_file():
            raise DataError(f"There is no {lists / file}: name the folder that holds VOCdevkit.")
        names = (lists / file).read_text().split()
        pairs = [(root / "JPEGImages" / f"{name}.jpg", root / masks / f"{name}.png") for name in names]
        if lacking := next((path for pair in pairs for path in pair if not path.is_file()), None):
            raise DataError(f"There is no {lacking}, which {lists / file} names: complete the data set.")
        return MaskedFiles(pairs, classes)

    train = part("trainaug.txt", "SegmentationClassAug") if augmented else part("train.txt", "SegmentationClass")
    return SegmentationData(train, part("val.txt", "SegmentationClass"), 21)


def _cityscapes(root: Path) -> SegmentationData:
    classes = {number: IGNORED for number in (*range(34), 255)} | {label: n for n, label in enumerate(CITYSCAPES)}

    def part(name: str) -> MaskedFiles:
        photos, masks = root / "leftImg8bit" / name, root / "gtFine" / name
        return MaskedFiles(_matched(photos, masks, "_leftImg8bit", "_gtFine_labelIds"), classes)

    # Short side as the images are; the crop is chosen here, for the released config was not at hand.
    return SegmentationData(part("train"), part("val"), 19, short_side=1024, crop=768)


def _folder(root: Path) -> SegmentationData:
    train, test = (_matched(root / part / "images", root / part / "masks") for part in ("train", "test"))
    if (root / "classes.txt").is_file():
        count = len((root / "classes.txt").read_text().splitlines())
    else:
        numbers = [mask_numbers(mask) for _, mask in train]
        count = 1 + max(int(found[found != IGNORED].max(initial=0)) for found in numbers)
    classes = {number: number for number in range(count)} | {255: IGNORED}
    return SegmentationData(MaskedFiles(train, classes), MaskedFiles(test, classes), count)


def _composites(root: Path) -> SegmentationData:
    train, test, classes = open_composites(root)
    return SegmentationData(train, test, classes, short_side=240, crop=240)


_READERS: dict[str, Callable[[Path], SegmentationData]] = {
    "ade20k": _ade20k,
    "voc": _voc,
    "cityscapes": _cityscapes,
    "folder": _folder,
    "composites": _composites,
}
