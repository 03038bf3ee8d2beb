"""Data sets of retrieval: queries, a gallery, and which images of it are right for each query."""

import io
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dinov2_zoo.data.image_sets import images_below, open_labelled
from dinov2_zoo.data.sources import Files, Source, open_source
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.encoders.feature_store import Box, source_checksum
from dinov2_zoo.evaluation.record import DataFacts, checksum


@dataclass(frozen=True)
class Truth:
    """For one query."""

    right: Sequence[int]
    """Numbers of the right images in the gallery."""
    junk: Sequence[int] = ()
    """Those that are neither right nor wrong."""


@dataclass(frozen=True)
class RetrievalSet:
    """What is asked, where it is sought, and the answers."""

    gallery: Source
    """Images that are ranked."""
    queries: Source
    """Images that ask; the gallery itself where every image is asked about."""
    tasks: Mapping[str, Sequence[Truth]]
    """Answers by task, "" where there is one only; a truth for each query."""
    boxes: Mapping[int, Box] = field(default_factory=dict)
    """Left, top, right, bottom of the object in a query, pixels."""
    source: str = ""
    """How the data were named."""

    def facts(self) -> DataFacts:
        """What a record says of the images."""
        sets = {"gallery": self.gallery, "queries": self.queries}
        truths = [f"{task} {t.right} {t.junk}" for task, found in self.tasks.items() for t in found]
        digest = checksum([*map(source_checksum, sets.values()), *truths])
        return DataFacts(self.source, {name: len(part) for name, part in sets.items()}, digest)


def open_retrieval(text: str) -> RetrievalSet:
    """Open a data set.

    Args:
        text: One of
            - roxford:/path, rparis:/path: a folder jpg and gnd_roxford5k.pkl (or gnd_rparis6k.pkl, or .json);
            - amstertime:/path: folders old and new with equal file names; each old photo has one right new one;
            - met:/path: folders gallery and queries, in each a folder per exhibit; queries of an exhibit that the
              gallery lacks are left out;
            - folder:/path: a folder per thing; every image is a query to all others. Any labelled source will do.

    Raises:
        DataError: A part is missing or does not fit; names it.
    """
    kind, _, rest = text.partition(":")
    if kind not in _READERS or not rest:
        raise DataError(f"There is no retrieval set {text!r}: use {', '.join(f'{name}:/path' for name in _READERS)}.")
    data = replace(_READERS[kind](rest), source=text)
    if not any(truth.right for found in data.tasks.values() for truth in found):
        raise DataError(f"No query of {text} has a right image in the gallery: give two images of a thing or more.")
    return data


def _groups(text: str) -> RetrievalSet:
    source = open_labelled(text)
    assert source.labels is not None
    members: dict[int, list[int]] = {}
    for index, label in enumerate(source.labels):
        members.setdefault(label, []).append(index)
    # The query itself is junk: it would be its own nearest.
    truths = [Truth([i for i in members[label] if i != index], [index]) for index, label in enumerate(source.labels)]
    return RetrievalSet(source, source, {"": truths})


def _pairs(text: str) -> RetrievalSet:
    root = Path(text).expanduser()
    old, new = images_below(root / "old"), images_below(root / "new")
    place = {Path(name).stem: number for number, name in enumerate(new)}
    if lacking := next((name for name in old if Path(name).stem not in place), None):
        raise DataError(f"{root / 'old' / lacking} has no image of this name in {root / 'new'}: complete the pair.")
    truths = [Truth([place[Path(name).stem]]) for name in old]
    return RetrievalSet(Files(root / "new", new), Files(root / "old", old), {"": truths})


def _exhibits(text: str) -> RetrievalSet:
    root = Path(text).expanduser()
    gallery, queries = (open_source(str(root / part)) for part in ("gallery", "queries"))
    if not gallery.classes or not queries.classes or gallery.labels is None or queries.labels is None:
        raise DataError(f"{root} must hold gallery/ and queries/, each with a folder per exhibit: check the path.")
    members: dict[str, list[int]] = {}
    for index, label in enumerate(gallery.labels):
        members.setdefault(gallery.classes[label], []).append(index)
    truths = [Truth(members.get(queries.classes[label], ())) for label in queries.labels]
    return RetrievalSet(gallery, queries, {"": truths})


def _revisited(file: str) -> Callable[[str], RetrievalSet]:
    def read(text: str) -> RetrievalSet:
        root = Path(text).expanduser()
        found = next((root / f"{file}{end}" for end in (".pkl", ".json") if (root / f"{file}{end}").is_file()), None)
        if found is None:
            raise DataError(f"There is no {root / file}.pkl: fetch the revisited annotations and put them there.")
        try:
            content = json.loads(found.read_text()) if found.suffix == ".json" else _Plain(found.read_bytes()).load()
            gallery = [f"{name}.jpg" for name in content["imlist"]]
            queries = [f"{name}.jpg" for name in content["qimlist"]]
            truths: list[dict[str, Any]] = list(content["gnd"])
            easy, hard, junk = ([[int(i) for i in truth[key]] for truth in truths] for key in ("easy", "hard", "junk"))
            boxes = {i: tuple(map(float, truth["bbx"])) for i, truth in enumerate(truths) if "bbx" in truth}
        except (KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise DataError(f"{found} is not a file of revisited annotations ({error}): fetch it again.") from error
        if lacking := next((n for n in [*gallery[:1], *queries] if not (root / "jpg" / n).is_file()), None):
            raise DataError(f"There is no {root / 'jpg' / lacking}, which {found} names: complete the images.")
        each = list(zip(easy, hard, junk, strict=True))
        tasks = {
            "easy": [Truth(e, [*j, *h]) for e, h, j in each],
            "medium": [Truth([*e, *h], j) for e, h, j in each],
            "hard": [Truth(h, [*j, *e]) for e, h, j in each],
        }
        return RetrievalSet(Files(root / "jpg", gallery), Files(root / "jpg", queries), tasks, boxes)  # pyright: ignore[reportArgumentType]

    return read


class _Plain(pickle.Unpickler):
    """Reads lists, dicts, text, numbers and arrays.

    A pickle can name any function to be called: none is allowed here but those that make arrays and bytes.
    """

    ALLOWED = frozenset({("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")})
    MAKERS = frozenset({"_reconstruct", "scalar"})

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        maker = global_name in self.MAKERS and module_name in ("numpy.core.multiarray", "numpy._core.multiarray")
        if maker or (module_name, global_name) in self.ALLOWED:
            return super().find_class(module_name.replace("numpy.core", "numpy._core"), global_name)
        raise pickle.UnpicklingError(f"it calls {module_name}.{global_name}, which is not allowed")


_READERS: dict[str, Callable[[str], RetrievalSet]] = {
    "roxford": _revisited("gnd_roxford5k"),
    "rparis": _revisited("gnd_rparis6k"),
    "amstertime": _pairs,
    "met": _exhibits,
    "folder": _groups,
}
