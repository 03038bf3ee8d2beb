"""Test sets that show how a classifier trained on ImageNet stands changes of the images (paper, Tables 4 and 6)."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.data.image_sets import images_below
from dinov2_zoo.data.sources import Files, Source
from dinov2_zoo.errors import DataError

# AlexNet's error on each corruption, by which the mean corruption error is normalised (Hendrycks and Dietterich 2019).
ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


@dataclass(frozen=True)
class RobustSet:
    """Images with the answers that count as right."""

    name: str
    """In tables: imagenet-a."""
    source: Source
    """Images."""
    right: Sequence[frozenset[int]]
    """Class numbers of the training set that are right, for each image."""
    allowed: Sequence[int] | None = None
    """Classes among which the prediction is sought; None: all."""
    corruptions: Sequence[str] | None = None
    """Kind of corruption of each image; the metric is then the mean corruption error."""


def robust_accuracy(logits: Float[Tensor, "n C"], indices: Sequence[int], images: RobustSet) -> float:
    """Share of images whose prediction is right, 0..1; for corruptions the mean error over AlexNet's: lower is better.

    Args:
        logits: Of a classifier on the training classes.
        indices: Number of each row's image in the set.
        images: The set.
    """
    if images.allowed is not None:
        barred = torch.ones(logits.shape[1], dtype=torch.bool)
        barred[list(images.allowed)] = False
        logits = logits.masked_fill(barred, -torch.inf)
    hits = [answer in images.right[index] for answer, index in zip(logits.argmax(1).tolist(), indices, strict=True)]
    if images.corruptions is None:
        return sum(hits) / len(hits)
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for hit, index in zip(hits, indices, strict=True):
        by_kind[images.corruptions[index]].append(hit)
    errors = [(1 - sum(found) / len(found)) / ALEXNET[kind] for kind, found in by_kind.items()]
    return sum(errors) / len(errors)


def open_robust(text: str, train: Source) -> RobustSet:
    """Open a robustness set.

    Args:
        text: imagenet-a:/path, imagenet-r:/path, imagenet-sketch:/path (folders named by wnid), imagenet-v2:/path
            (folders named 0 to 999), imagenet-c:/path (corruption/severity/wnid), real:/path (ImageNet's val/ and
            real.json).
        train: What the classifier learns from; its classes are named by wnid.

    Raises:
        DataError: The kind is unknown, a folder is missing, or a class is not among the training classes.
    """
    kind, _, path = text.partition(":")
    if kind not in _READERS or not path:
        raise DataError(f"There is no robustness set {text!r}: use {', '.join(f'{name}:/path' for name in _READERS)}.")
    return _READERS[kind](kind, Path(path).expanduser(), train)


def _numbers(wnids: set[str], train: Source, root: Path) -> dict[str, int]:
    """Class numbers of folders."""
    known = {wnid: number for number, wnid in enumerate(train.classes or ())}
    if unknown := sorted(wnids - known.keys()):
        raise DataError(
            f"Class {unknown[0]} of {root} is not among the training classes: train on folders named by wnid, as in "
            "imagenet:/path@train."
        )
    return {wnid: known[wnid] for wnid in wnids}


def _by_wnid(name: str, root: Path, train: Source) -> RobustSet:
    names = images_below(root)
    numbers = _numbers({name.split("/")[0] for name in names}, train, root)
    labels = [numbers[name.split("/")[0]] for name in names]
    # A and R cover 200 classes, and predictions are sought among these (official protocols).
    allowed = sorted(numbers.values()) if name in ("imagenet-a", "imagenet-r") else None
    return RobustSet(name, Files(root, names, labels), [frozenset([label]) for label in labels], allowed)


def _by_number(name: str, root: Path, train: Source) -> RobustSet:
    names = images_below(root)
    if odd := next((name for name in names if not name.split("/")[0].isdigit()), None):
        raise DataError(f"{root / odd} does not lie in a folder named by its class number: correct the path.")
    # Read as numbers: sorted as text, 10 would come before 2.
    labels = [int(name.split("/")[0]) for name in names]
    return RobustSet(name, Files(root, names, labels), [frozenset([label]) for label in labels])


def _corrupted(name: str, root: Path, train: Source) -> RobustSet:
    names = images_below(root)
    # corruption/severity/wnid/image; the official archives put a group such as noise/ or blur/ before them.
    parts = [name.split("/")[-4:] for name in names]
    if odd := next((n for n, p in zip(names, parts, strict=True) if len(p) < 4 or p[0] not in ALEXNET), None):
        raise DataError(f"{root / odd} does not lie in corruption/severity/wnid of ImageNet-C: correct the path.")
    numbers = _numbers({part[2] for part in parts}, train, root)
    labels = [numbers[part[2]] for part in parts]
    right = [frozenset([label]) for label in labels]
    return RobustSet(name, Files(root, names, labels), right, corruptions=[part[0] for part in parts])


def _real(name: str, root: Path, train: Source) -> RobustSet:
    file = root / "real.json"
    try:
        answers: list[list[int]] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}): fetch ReaL's labels and put them there.") from error
    kept: list[str] = []
    right: list[frozenset[int]] = []
    for path in images_below(root / "val"):
        number = re.search(r"_(\d{8})\.", path)
        if number is None or not 1 <= int(number[1]) <= len(answers):
            raise DataError(f"{root / 'val' / path} has no entry in {file}: keep the images' original names.")
        # Images that ReaL gives no label are left out (its protocol).
        if found := answers[int(number[1]) - 1]:
            kept.append(path)
            right.append(frozenset(found))
    return RobustSet(name, Files(root / "val", kept, [min(found) for found in right]), right)


_READERS: dict[str, Callable[[str, Path, Source], RobustSet]] = {
    "imagenet-a": _by_wnid,
    "imagenet-r": _by_wnid,
    "imagenet-sketch": _by_wnid,
    "imagenet-v2": _by_number,
    "imagenet-c": _corrupted,
    "real": _real,
}
