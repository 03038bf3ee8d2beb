"""Data sets of depth: photos with metres for every pixel, cut and scaled as their protocols say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dinov2_zoo.data.decode import decode
from dinov2_zoo.data.image_sets import images_below
from dinov2_zoo.data.package_photos import packaged_path
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.dense.pairs import PairSource, read_photo
from dinov2_zoo.evaluation.depth.metrics import Mask
from dinov2_zoo.evaluation.record import DataFacts, checksum

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, pixels."""
NYU_BOX = (43, 45, 608, 472)
"""Part of NYU's training images without the white border (BTS; official configs)."""
KITTI_SIZE = (1216, 352)
"""Width and height of the part that KITTI is cut to: bottom, centre (official configs)."""


@dataclass(frozen=True)
class DepthData:
    """Images with depth, and the rules of their protocol."""

    train: PairSource | None
    """To train on."""
    test: PairSource | None
    """To be measured on."""
    min_depth: float
    """Metres."""
    max_depth: float
    """Metres."""
    crop: tuple[int, int]
    """Height and width of training crops, pixels."""
    mask: Mask = "none"
    """Part of a test image that is judged."""
    brightness: tuple[float, float] = (0.75, 1.25)
    """Range of the brightness factor in training (official: as here indoors, 0.9 to 1.1 outdoors)."""
    source: str = ""
    """How the data were named."""

    def train_images(self) -> PairSource:
        """To train on.

        Raises:
            DataError: There are none.
        """
        if self.train is None:
            raise DataError("These data are for tests only: give --depth.weights of a trained head, or other data.")
        return self.train

    def test_images(self) -> PairSource:
        """To be measured on.

        Raises:
            DataError: There are none.
        """
        if self.test is None:
            raise DataError("These data have no test images: complete them.")
        return self.test

    def facts(self) -> DataFacts:
        """What a record says of the images."""
        sets = {name: part for name, part in (("train", self.train), ("test", self.test)) if part is not None}
        names = [part.name(index) for part in sets.values() for index in range(len(part))]
        return DataFacts(self.source, {name: len(part) for name, part in sets.items()}, checksum(names))


class DepthFiles:
    """Photos and depth files.

    Args:
        pairs: Photo and depth: PNG of whole numbers, or .npy of metres.
        scale: Numbers of the PNG per metre.
        box: From the photo's size to the part that is used; None: all of it.
        size: Width and height that the photo is then resized to, the ratio not kept; the depth stays.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path]],
        scale: float,
        box: Callable[[int, int], Box] | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self._pairs, self._scale, self._box, self._size = pairs, scale, box, size

    def __len__(self) -> int:
        return len(self._pairs)

    def name(self, index: int) -> str:
        """The photo's path."""
        return str(self._pairs[index][0])

    def read(self, index: int) -> tuple[Image.Image, Float[Tensor, "H W"]]:
        """See `PairSource.read`."""
        photo_file, depth_file = self._pairs[index]
        depth = _metres(depth_file, self._scale)
        photo = read_photo(photo_file, depth_file, (depth.shape[0], depth.shape[1]))
        if self._box:
            left, top, right, bottom = self._box(photo.width, photo.height)
            photo, depth = photo.crop((left, top, right, bottom)), depth[top:bottom, left:right].contiguous()
        if self._size:
            photo = photo.resize(self._size, Image.Resampling.BILINEAR)
            depth = torch.nn.functional.interpolate(depth[None, None], self._size[::-1], mode="nearest")[0, 0]
        return photo, depth


def _metres(path: Path, scale: float) -> Float[Tensor, "H W"]:
    try:
        if path.suffix == ".npy":
            values = np.load(path).astype(np.float32)
        else:
            with Image.open(path) as file:
                values = np.array(file).astype(np.float32) / scale
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path} cannot be read ({error}): fetch it again.") from error
    if values.ndim != 2:
        raise DataError(f"{path} holds {values.shape}, not one number per pixel: give depth as grey PNG or .npy.")
    return torch.from_numpy(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0))


def check_unit(data: DepthData, low: float, high: float, looked_at: int = 8) -> DepthData:
    """See that the median depth of the first images is plausible: a wrong unit or scale is out by 10 or 1000.

    Args:
        data: Images.
        low: Least plausible median, metres.
        high: Largest.
        looked_at: Images of each part.

    Raises:
        DataError: It is not.
    """
    for part in (data.train, data.test):
        if part is None:
            continue
        known = [depth[depth > 0] for _, depth in (part.read(i) for i in range(min(len(part), looked_at)))]
        values = torch.cat(known)
        if not len(values):
            raise DataError(f"{part.name(0)} and those after it have no known depth: check the depth files.")
        if not low <= values.median().item() <= high:
            raise DataError(
                f"The median depth of {part.name(0)} and those after it is {values.median().item():.3g} m, not between "
                f"{low:g} and {high:g} m: check the unit; folder:/path?scale=1000 says that files are in millimetres."
            )
    return data


def open_depth(text: str) -> DepthData:
    """Open a data set.

    Args:
        text: One of
            - nyu:/path: nyu_train.txt and nyu_test.txt (lines "photo depth ...", as BTS made them) and their files;
              PNG in millimetres;
            - kitti:/path: kitti_eigen_train.txt and kitti_eigen_test.txt, photos in or below input/, depth in or below
              gt_depth/; PNG in 1/256 m; lines whose depth is None are left out;
            - sunrgbd:/path: sunrgbd_test.txt with lines "photo depth"; PNG in 1/8000 m; tests of NYU heads only;
            - folder:/path[?scale=1000&max=10&mask=none]: train/ and test/, each with images/ and depth/ of equal names;
              PNG in 1/scale m, or .npy in metres;
            - package:motorcycle: the stereo pair inside scikit-image, left part to train, right part to test.

    Raises:
        DataError: A file is missing, or depth is in another unit; names it.
    """
    if text == "package:motorcycle":
        return replace(_motorcycle(), source=text)
    kind, _, path = text.partition(":")
    if kind not in _READERS or not path:
        names = ", ".join(f"{name}:/path" for name in _READERS)
        raise DataError(f"There are no depth data {text!r}: use {names} or package:motorcycle.")
    return replace(_READERS[kind](path), source=text)


def _listed(
    root: Path, file: str, photos: Sequence[str] = ("",), depths: Sequence[str] = ("",)
) -> list[tuple[Path, Path]]:
    """Pairs of a list, sought below some folders."""
    path = root / file
    if not path.is_file():
        raise DataError(f"There is no {path}: put the list of the split there.")

    def sought(name: str, folders: Sequence[str]) -> Path:
        places = [root / folder / name.lstrip("/") for folder in folders]
        return next((place for place in places if place.is_file()), places[0])

    pairs: list[tuple[Path, Path]] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) < 2:
            raise DataError(f"{path}, line {number}: {line!r} is not `photo depth`: correct it.")
        if words[1] != "None":
            pairs.append((sought(words[0], photos), sought(words[1], depths)))
    if not pairs:
        raise DataError(f"{path} names no images: fetch the list again.")
    return pairs


def _nyu(text: str) -> DepthData:
    root = Path(text).expanduser()
    train = DepthFiles(_listed(root, "nyu_train.txt"), 1000, nyu_box)
    test = DepthFiles(_listed(root, "nyu_test.txt"), 1000)
    return check_unit(DepthData(train, test, 1e-3, 10.0, (416, 544), "eigen"), 0.5, 8)


def nyu_box(width: int, height: int) -> Box:
    """The part without the border."""
    return NYU_BOX


def _kitti(text: str) -> DepthData:
    root = Path(text).expanduser()

    def part(file: str) -> DepthFiles:
        return DepthFiles(_listed(root, file, ("input", ""), ("gt_depth", "")), 256, kitti_box)

    train, test = part("kitti_eigen_train.txt"), part("kitti_eigen_test.txt")
    return check_unit(DepthData(train, test, 1e-3, 80.0, (352, 704), "garg", (0.9, 1.1)), 2, 60)


def kitti_box(width: int, height: int) -> Box:
    """The lower middle of an image."""
    left, top = (width - KITTI_SIZE[0]) // 2, height - KITTI_SIZE[1]
    return left, top, left + KITTI_SIZE[0], top + KITTI_SIZE[1]


def _sunrgbd(text: str) -> DepthData:
    pairs = _listed(Path(text).expanduser(), "sunrgbd_test.txt")
    return check_unit(DepthData(None, DepthFiles(pairs, 8000, size=(640, 480)), 1e-3, 10.0, (416, 544)), 0.3, 10)


def _folder(text: str) -> DepthData:
    path, _, query = text.partition("?")
    options = dict(parse_qsl(query))
    known = {"scale": "1000", "max": "10", "mask": "none"}
    if unknown := sorted(options.keys() - known.keys()):
        raise DataError(f"folder:{text} has no option {unknown[0]}: use {', '.join(known)}.")
    options = known | options
    root, largest = Path(path).expanduser(), float(options["max"])
    parts = {
        part: _matched(root / part, float(options["scale"])) for part in ("train", "test") if (root / part).is_dir()
    }
    if not parts:
        raise DataError(f"{root} has neither train/ nor test/: give each with images/ and depth/.")
    mask: Mask = "eigen" if options["mask"] == "eigen" else "garg" if options["mask"] == "garg" else "none"
    data = DepthData(parts.get("train"), parts.get("test"), 1e-3, largest, (416, 544), mask)
    return check_unit(data, 0.01 * largest, largest)


def _matched(folder: Path, scale: float) -> DepthFiles:
    pairs: list[tuple[Path, Path]] = []
    for name in images_below(folder / "images"):
        stem = (folder / "depth" / name).with_suffix("")
        depth = next((stem.with_suffix(end) for end in (".npy", ".png") if stem.with_suffix(end).is_file()), None)
        if depth is None:
            raise DataError(f"There is no depth {stem}.png or .npy for {folder / 'images' / name}: add it.")
        pairs.append((folder / "images" / name, depth))
    return DepthFiles(pairs, scale)


# The stereo pair of scikit-image, from Middlebury 2014: depth = baseline * focal length / (disparity + offset).
BASELINE, FOCAL, OFFSET = 0.193001, 994.978, 31.086  # metres, pixels, pixels (scikit-image's documentation)
TILE = 224  # pixels


class Tiles:
    """Square parts of one photo.

    Args:
        photo: RGB.
        depth: Metres.
        corners: Top and left of each, pixels.
    """

    def __init__(self, photo: Image.Image, depth: Float[Tensor, "H W"], corners: Sequence[tuple[int, int]]) -> None:
        self._photo, self._depth, self._corners = photo, depth, corners

    def __len__(self) -> int:
        return len(self._corners)

    def name(self, index: int) -> str:
        """Where the part lies."""
        return f"package:motorcycle, row {self._corners[index][0]}, column {self._corners[index][1]}"

    def read(self, index: int) -> tuple[Image.Image, Float[Tensor, "H W"]]:
        """See `PairSource.read`."""
        top, left = self._corners[index]
        return self._photo.crop((left, top, left + TILE, top + TILE)), self._depth[
            top : top + TILE, left : left + TILE
        ].clone()


def _motorcycle() -> DepthData:
    """Twelve tiles from columns 0 to 470, six from 517 on: no pixel is in both."""
    photo = decode(packaged_path("skimage/data/motorcycle_left.png").read_bytes())
    disparity = np.load(packaged_path("skimage/data/motorcycle_disp.npz"))["arr_0"]
    depth = torch.from_numpy(np.where(np.isfinite(disparity), BASELINE * FOCAL / (disparity + OFFSET), 0.0)).float()
    train = [(top, left) for top in (0, 138, 276) for left in (0, 82, 164, 246)]
    test = [(top, 517) for top in (0, 55, 110, 165, 220, 276)]
    data = DepthData(Tiles(photo, depth, train), Tiles(photo, depth, test), 1e-3, 10.0, (196, 196))
    return check_unit(data, 1, 8)


_READERS: dict[str, Callable[[str], DepthData]] = {"nyu": _nyu, "kitti": _kitti, "sunrgbd": _sunrgbd, "folder": _folder}
