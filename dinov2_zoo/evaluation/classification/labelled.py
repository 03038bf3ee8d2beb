"""Labelled images to learn from and to be measured on: that their classes agree, and what a record says of them."""

from collections import Counter

from dinov2_zoo.data.sources import Source
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.encoders.feature_store import source_checksum
from dinov2_zoo.evaluation.record import DataFacts, checksum


def check_classes(train: Source, test: Source | None) -> None:
    """See that every class can be learnt, and means the same in both sets.

    Raises:
        DataError: It cannot, or does not; names the class.
    """
    for what, source in (("training", train), ("test", test)):
        if source is not None and source.labels is None:
            raise DataError(f"The {what} images have no labels: give a folder per class, or a source with labels.")
    count = Counter(train.labels)
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


def facts(text: str, train: Source, test: Source | None) -> DataFacts:
    """What a record says of the images."""
    sets = {"train": train} if test is None else {"train": train, "test": test}
    return DataFacts(
        text, {name: len(part) for name, part in sets.items()}, checksum(map(source_checksum, sets.values()))
    )


def skipped_notes(*skipped: dict[str, str]) -> list[str]:
    """One sentence about images that could not be decoded, if there were any."""
    names = sorted(name for part in skipped for name in part)
    return [f"{len(names)} images could not be decoded and are left out, the first is {names[0]}."] if names else []
