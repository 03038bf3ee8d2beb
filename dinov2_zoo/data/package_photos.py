"""Real photos that installed Python packages ship: a data set for the demo and the tests that needs no download.

"photos/train" and "photos/heldout" are the photos inside the wheels of scikit-image, scikit-learn and foolbox, found by
path: none of these packages is imported. "digits" is scikit-learn's 1,797 labelled 8 x 8 scans, for k-NN.
The pictures keep the terms under which those packages ship them; nothing is copied into this repository.
"""

import csv
import gzip
import importlib.util
from pathlib import Path

from PIL import Image

from dinov2_zoo.errors import ConfigError, DataError

# How to get a package. foolbox pins old dependencies that only its code needs, not its pictures.
INSTALL = {
    "skimage": "pip install scikit-image",
    "sklearn": "pip install scikit-learn",
    "foolbox": "pip install --no-deps foolbox",
}

# Looked at one by one. Left out of scikit-image: drawings and test charts (chessboard_*, color, horse, logo, phantom,
# no_time_for_that_tiny, multipage*), and microaneurysms, cell and clock_motion, which are tiny or a blur.
# Left out of foolbox: its CIFAR and MNIST samples, 32 pixels and less. What packages fetch on demand is not used.
TRAIN = (
    "skimage/data/astronaut.png",  # portrait
    "skimage/data/brick.png",  # texture, grey
    "skimage/data/camera.png",  # person, grey
    "skimage/data/coins.png",  # objects, grey
    "skimage/data/grass.png",  # texture, grey
    "skimage/data/gravel.png",  # texture, grey
    "skimage/data/hubble_deep_field.jpg",  # galaxies
    "skimage/data/ihc.png",  # histology
    "skimage/data/moon.png",  # craters, grey
    "skimage/data/motorcycle_left.png",  # motorcycle
    "skimage/data/motorcycle_right.png",  # its stereo twin
    "skimage/data/page.png",  # print, grey
    "skimage/data/retina.jpg",  # fundus
    "skimage/data/rocket.jpg",  # rocket at night
    "skimage/data/text.png",  # handwriting, grey
    "sklearn/datasets/images/flower.jpg",  # dahlia
    "foolbox/data/imagenet_01_559.jpg",  # chairs
    "foolbox/data/imagenet_02_438.jpg",  # laboratory
    "foolbox/data/imagenet_04_949.jpg",  # strawberries
    "foolbox/data/imagenet_05_853.jpg",  # cottage
    "foolbox/data/imagenet_06_609.jpg",  # jeep
    "foolbox/data/imagenet_08_915.jpg",  # yurt
    "foolbox/data/imagenet_09_455.jpg",  # bottle cap
    "foolbox/data/imagenet_10_541.jpg",  # drum
    "foolbox/data/imagenet_11_630.jpg",  # shoe
    "foolbox/data/imagenet_12_741.jpg",  # stained glass
    "foolbox/data/imagenet_14_129.jpg",  # birds on a wire
    "foolbox/data/imagenet_16_251.jpg",  # dalmatian
    "foolbox/data/imagenet_17_22.jpg",  # eagle
    "foolbox/data/imagenet_19_305.jpg",  # beetle
)

# Varied, from all three packages, and no scene of theirs is in TRAIN.
HELDOUT = (
    "skimage/data/chelsea.png",  # cat
    "skimage/data/coffee.png",  # cup
    "sklearn/datasets/images/china.jpg",  # pagoda
    "foolbox/data/imagenet_00_243.jpg",  # mastiff
    "foolbox/data/imagenet_03_990.jpg",  # chestnut
    "foolbox/data/imagenet_07_609.jpg",  # car
    "foolbox/data/imagenet_13_471.jpg",  # cannon
    "foolbox/data/imagenet_15_99.jpg",  # geese
    "foolbox/data/imagenet_18_317.jpg",  # leafhopper
)

DIGITS = "sklearn/datasets/data/digits.csv.gz"
NAMES = ("photos/train", "photos/heldout", "digits")


class PackagePhotos:
    """Photos inside installed packages, by path relative to where packages are installed. No labels."""

    labels: list[int] | None = None
    classes: list[str] | None = None

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._paths = [packaged_path(name) for name in names]

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> bytes:
        """The file's bytes."""
        return self._paths[index].read_bytes()

    def name(self, index: int) -> str:
        """Package and path, as in "skimage/data/coffee.png"."""
        return self._names[index]


class Digits:
    """Handwritten digits of scikit-learn, 1,797 labelled scans of 8 x 8 pixels."""

    def __init__(self) -> None:
        with gzip.open(packaged_path(DIGITS), "rt", newline="") as file:
            rows = [[int(float(value)) for value in row] for row in csv.reader(file)]
        self._pixels = [row[:-1] for row in rows]
        self.labels: list[int] | None = [row[-1] for row in rows]
        self.classes: list[str] | None = [str(digit) for digit in range(10)]

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, index: int) -> Image.Image:
        """An 8 x 8 RGB image; the file's 17 grey levels 0..16 become 0..255. Evaluation resizes it."""
        grey = bytes(value * 255 // 16 for value in self._pixels[index])
        return Image.frombytes("L", (8, 8), grey).convert("RGB")

    def name(self, index: int) -> str:
        """Row in the package's file."""
        return f"{DIGITS}:{index}"


def open_package(name: str) -> PackagePhotos | Digits:
    """Open images that installed packages ship.

    Args:
        name: "photos/train" (30 photos), "photos/heldout" (9 others), or "digits" (1,797, labelled).

    Returns:
        A source, as `dinov2_zoo.data.sources.Source` describes it.

    Raises:
        ConfigError: Another name.
        DataError: A package that ships some of the images is missing, or no longer ships them.
    """
    if name == "photos/train":
        return PackagePhotos(TRAIN)
    if name == "photos/heldout":
        return PackagePhotos(HELDOUT)
    if name == "digits":
        return Digits()
    raise ConfigError(f"There are no package images called {name!r}: use package:{', package:'.join(NAMES)}.")


def packaged_path(name: str) -> Path:
    """Where a file of an installed package lies, as in "skimage/data/coffee.png"; the package is not imported.

    Raises:
        DataError: It is not installed, or no longer ships the file.
    """
    package, inside = name.split("/", 1)
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"The images of package {package} are not installed: run `{INSTALL[package]}`.")
    path = Path(spec.submodule_search_locations[0]) / inside
    if not path.is_file():
        raise DataError(f"{name} is not in the installed {package}: run `{INSTALL[package]} --upgrade`.")
    return path
