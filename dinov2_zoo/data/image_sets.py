"""Labelled images by a line of text: every source that recipes take, and ImageNet as it is distributed."""

from pathlib import Path

from dinov2_zoo.data.formats import readable_suffixes
from dinov2_zoo.data.sources import Files, Source, open_source
from dinov2_zoo.errors import DataError

IMAGENET = "imagenet:"
LIST = "val.txt"
"""Names the class of each image of a flat validation folder: a line "name number", as Caffe's list and Kaggle's."""


def open_labelled(text: str) -> Source:
    """Open images with labels.

    Args:
        text: A source as `data.sources.open_source` takes it, or `imagenet:/path@train` or `@val`: folders
            train/<wnid>/ and val/<wnid>/, or a flat val/ with val.txt beside or in it. Class numbers follow the sorted
            wnids.

    Raises:
        DataError: There is no such folder, or an image has no label.
    """
    if text.startswith(IMAGENET):
        path, at, split = text.removeprefix(IMAGENET).rpartition("@")
        if not at or split not in ("train", "val"):
            raise DataError(f"{text} names no split: write {text.partition('@')[0]}@train or @val.")
        return _imagenet(Path(path).expanduser() / split)
    source = open_source(text)
    if source.labels is None:
        raise DataError(f"{text} has no labels: give a folder for each class, or a source with labels.")
    return source


def images_below(folder: Path) -> list[str]:
    """Names of all images below a folder, relative to it, sorted.

    Raises:
        DataError: There is no such folder, or it holds no images.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}: correct the path of the data set.")
    known = readable_suffixes()
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in known)
    if not names:
        raise DataError(f"There are no images in {folder}: correct the path of the data set.")
    return names


def _imagenet(folder: Path) -> Files:
    names = images_below(folder)
    flat = [name for name in names if "/" not in name]
    if not flat:
        wnids = sorted({name.split("/")[0] for name in names})
        number = {wnid: place for place, wnid in enumerate(wnids)}
        return Files(folder, names, [number[name.split("/")[0]] for name in names], wnids)
    list_file = next((place / LIST for place in (folder, folder.parent) if (place / LIST).is_file()), None)
    if list_file is None:
        raise DataError(f"{folder} is flat and has no {LIST}: add one with a line `name class-number` for each image.")
    numbers = numbered_lines(list_file)
    if lacking := next((name for name in flat if name not in numbers), None):
        raise DataError(f"{list_file} has no line for {lacking}: complete it.")
    return Files(folder, flat, [numbers[name] for name in flat])


def numbered_lines(path: Path) -> dict[str, int]:
    """The lines "name number" of a file.

    Raises:
        DataError: A line is of another form; names it.
    """
    found: dict[str, int] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        name, _, value = line.strip().rpartition(" ")
        if not name or not value.isdigit():
            raise DataError(f"{path}, line {number}: {line!r} is not `name class-number`: correct it.")
        found[name.strip()] = int(value)
    return found
