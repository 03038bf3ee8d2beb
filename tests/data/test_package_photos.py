"""Photos that packages ship: all there, none in both parts, labels right."""

import importlib.util
import io

import numpy as np
import pytest
from PIL import Image

from dinov2_zoo.data import package_photos
from dinov2_zoo.data.package_photos import HELDOUT, NAMES, TRAIN, open_package
from dinov2_zoo.errors import ConfigError, DataError

PACKAGES = ("skimage", "sklearn", "foolbox")
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES), reason="photo packages are not installed"
)


def opened(source, index):
    return Image.open(io.BytesIO(source.read(index))).convert("RGB")


def test_every_photo_opens_and_is_at_least_a_crop_in_size():
    for part, count in (("photos/train", 30), ("photos/heldout", 9)):
        source = open_package(part)
        assert len(source) == count and source.labels is None and source.classes is None
        for index in range(count):
            assert min(opened(source, index).size) >= 112, source.name(index)


def test_no_heldout_photo_resembles_a_training_photo():
    def thumbnail(source, index):
        pixels = np.asarray(opened(source, index).resize((16, 16)).convert("L"), dtype=np.float64).ravel()
        pixels -= pixels.mean()
        return pixels / np.linalg.norm(pixels)

    assert not set(TRAIN) & set(HELDOUT)
    train, heldout = open_package("photos/train"), open_package("photos/heldout")
    a = np.stack([thumbnail(train, i) for i in range(len(train))])
    b = np.stack([thumbnail(heldout, i) for i in range(len(heldout))])
    assert (a @ b.T).max() < 0.75
    # The measure sees what it should: the stereo twins, both in the training part, are near-duplicates.
    left, right = (TRAIN.index(f"skimage/data/motorcycle_{side}.png") for side in ("left", "right"))
    assert a[left] @ a[right] > 0.75


def test_heldout_comes_from_every_package():
    assert {name.split("/")[0] for name in HELDOUT} == set(PACKAGES)


def test_digits_equal_scikit_learns_own_reader():
    datasets = pytest.importorskip("sklearn.datasets")
    truth, source = datasets.load_digits(), open_package("digits")
    assert source.labels == truth.target.tolist() and source.classes == list("0123456789")
    for index in (0, 700, 1796):
        image = source.read(index)
        assert image.mode == "RGB"
        assert (np.asarray(image)[..., 1] == truth.images[index] * 255 // 16).all()


def test_unknown_name_and_missing_package_say_what_to_do(monkeypatch):
    with pytest.raises(ConfigError, match="package:photos/train"):
        open_package("photos")
    monkeypatch.setattr(package_photos.importlib.util, "find_spec", lambda name: None)
    for name, remedy in zip(NAMES, ("scikit-image", "scikit-image", "scikit-learn"), strict=True):
        with pytest.raises(DataError, match=f"pip install {remedy}"):
            open_package(name)
    monkeypatch.setattr(package_photos, "HELDOUT", HELDOUT[3:])
    with pytest.raises(DataError, match="--no-deps foolbox"):
        open_package("photos/heldout")
