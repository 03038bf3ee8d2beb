"""Labelled images to learn from and to be measured on: opened, seen to fit together, told in records."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dinov2_zoo.config.evaluate import EvaluateConfig
from dinov2_zoo.data.heldout import split_by_class
from dinov2_zoo.data.image_sets import open_labelled
from dinov2_zoo.data.sources import Source
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.classification.robust_sets import RobustSet, open_robust
from dinov2_zoo.evaluation.encoders.feature_store import source_checksum
from dinov2_zoo.evaluation.record import DataFacts, checksum
from dinov2_zoo.evaluation.task import Opener

TEST_SHARE = 0.2
"""Share of each class that is kept out of training and measured on, where no test images are named (chosen here: the
usual fifth; `linear.CHOICE_SHARE` is another, smaller part of what is left, which only chooses a winner)."""

LEAVE_ONE_OUT = "leave-one-out"


@dataclass(frozen=True)
class LabelledData:
    """Images of classes; they are checked when they are put together.

    Raises:
        DataError: A class cannot be learnt, or does not mean the same in both sets; names it.
    """

    train: Source
    """To learn from."""
    test: Source | None
    """To be measured on; None: each image of `train` is measured against all others."""
    source: str
    """How the training images were named."""
    robust: Sequence[RobustSet] = ()
    """More test sets, for the best linear probe."""
    split: str = "test images"
    """How the images that are measured on were chosen, for the record."""

    def __post_init__(self) -> None:
        check_classes(self.train, self.test)
        if self.test is None and max(Counter(self.train.labels).values()) < 2:
            raise DataError(
                f"Every class of {self.source} has one image only, so none has a neighbour of its own class: give "
                "two images of a class, or name test images with --data.test."
            )

    def facts(self) -> DataFacts:
        """What a record says of the images."""
        sets = {"train": self.train} if self.test is None else {"train": self.train, "test": self.test}
        counts = {name: len(part) for name, part in sets.items()}
        return DataFacts(self.source, counts, checksum(map(source_checksum, sets.values())))


def open_all(config: EvaluateConfig, opened: Opener) -> LabelledData:
    """All training images, and the test images if any are named."""
    text, test = config.data.train, config.data.test
    assert text
    if test:
        return LabelledData(opened(open_labelled, text), opened(open_labelled, test), text)
    return LabelledData(opened(open_labelled, text), None, text, split=LEAVE_ONE_OUT)


def open_apart(config: EvaluateConfig, opened: Opener) -> LabelledData:
    """Training and test images; a part of the former becomes the latter where none are named."""
    text, test = config.data.train, config.data.test
    assert text
    images = opened(open_labelled, text)
    if test:
        return LabelledData(images, opened(open_labelled, test), text)
    check_classes(images, None)
    train, apart = split_by_class(images, TEST_SHARE, config.runtime.seed)
    return LabelledData(train, apart, text, split=f"{TEST_SHARE:.0%} of each class kept out")


def open_with_robust(config: EvaluateConfig, opened: Opener) -> LabelledData:
    """The same with the robustness sets."""
    data = open_apart(config, opened)
    texts = [text.strip() for text in (config.data.robust or "").split(",") if text.strip()]
    return replace(data, robust=[open_robust(text, data.train) for text in texts])


def check_classes(train: Source, test: Source | None) -> None:
    """See that every class can be learnt, and means the same in both sets.

    Raises:
        DataError: It cannot, or does not; names the class.
    """
    for what, source in (("training", train), ("test", test)):
        if source is not None and source.labels is None:
            raise DataError(f"The {what} images have no labels: give a folder per class, or a source with labels.")
    count = Counter(train.labels)
    if len(count) < 2:
        raise DataError(
            f"All {len(train)} training images are of one class, so there is nothing to tell apart: give a folder for "
            "each of two classes or more."
        )
    if train.classes and (empty := [name for number, name in enumerate(train.classes) if not count[number]]):
        raise DataError(f"Class {empty[0]} has no training image: add some, or remove the class.")
    if test is None:
        return
    if train.classes and test.classes and train.classes != test.classes:
        ours, theirs = set(train.classes), set(test.classes)
        other = sorted(ours ^ theirs) or [a for a, b in zip(train.classes, test.classes, strict=True) if a != b]
        where = "training" if other[0] in ours - theirs else "test" if other[0] in theirs else "one"
        raise DataError(f"Class {other[0]} is in the {where} set only: give both the same folders of classes.")
    if lacking := sorted(set(test.labels or ()) - set(count)):
        raise DataError(f"Classes {lacking[:10]} have test images but no training image: add some, or leave them out.")


def skipped_notes(*skipped: dict[str, str]) -> list[str]:
    """One sentence about images that could not be decoded, if there were any."""
    names = sorted(name for part in skipped for name in part)
    return [f"{len(names)} images could not be decoded and are left out, the first is {names[0]}."] if names else []
