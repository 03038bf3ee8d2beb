"""Kinds of image files: which are read here, which need a package that is not installed, and what is no image at all.

A source leaves out what it cannot read, and counts it by kind, so that nobody trains on half of a folder unawares.
"""

import importlib
import importlib.util
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import features
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from dinov2_zoo.errors import DataError, how_to_install

PLAIN = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".mpo"}
)
"""What every Pillow reads."""

OTHER = "other"
"""The kind of files that are no images: videos, texts, side files."""

TWIN = "raw beside its JPEG"
"""The kind of raw photos that the camera saved as JPEG too: the same photo twice would leak into held-out images."""


@dataclass(frozen=True)
class Format:
    """A kind of image that takes an optional package."""

    name: str
    suffixes: tuple[str, ...]
    module: str | None
    """What is imported so that Pillow learns the format; None: only Pillow itself can have it."""
    package: tuple[str, ...]
    """What pip is told to install."""
    built_in: str | None = None
    """Pillow's own name of the format, where Pillow may have been built with it."""

    def readable(self) -> bool:
        """True where files of this kind can be decoded."""
        return self._in_pillow() or (self.module is not None and importlib.util.find_spec(self.module) is not None)

    def enable(self) -> None:
        """Have Pillow read this kind from now on; harmless if done twice.

        Raises:
            ImportError: The package is missing or broken.
        """
        if self._in_pillow():
            return
        if self.module is None:
            raise ImportError(f"this Pillow was built without {self.name}")
        module: Any = importlib.import_module(self.module)
        if self is HEIC:  # the others introduce themselves
            module.register_heif_opener()

    def remedy(self) -> str:
        """The command that makes it readable, in backquotes."""
        return how_to_install(*self.package)

    def _in_pillow(self) -> bool:
        return self.built_in is not None and bool(features.check(self.built_in))


HEIC = Format("HEIC", (".heic", ".heif", ".hif"), "pillow_heif", ("pillow-heif",))
AVIF = Format("AVIF", (".avif",), "pillow_avif", ("pillow>=11.3",), "avif")
JPEG_XL = Format("JPEG XL", (".jxl",), "pillow_jxl", ("pillow-jxl-plugin",))
JPEG_2000 = Format("JPEG 2000", (".jp2", ".j2k", ".jpx"), None, ("--upgrade", "pillow"), "jpg_2000")
RAW = Format("raw", (".nef", ".cr2", ".cr3", ".arw", ".dng", ".raf", ".orf", ".rw2"), "rawpy", ("rawpy",))
OPTIONAL = (HEIC, AVIF, JPEG_XL, JPEG_2000, RAW)


def readable_suffixes() -> frozenset[str]:
    """Endings of the files that can be decoded here, lower case, with their dot."""
    return PLAIN.union(*(kind.suffixes for kind in OPTIONAL if kind.readable()))


def kinds_of(names: Iterable[str]) -> list[str]:
    """Why each file is left out, in order: the name of its format, `TWIN` or `OTHER`; "" for images that are read here.

    Args:
        names: File names, with / between folders.
    """
    kinds = {suffix: kind.name for kind in OPTIONAL for suffix in kind.suffixes} | dict.fromkeys(
        readable_suffixes(), ""
    )
    parts = [os.path.splitext(name) for name in names]
    jpegs = {stem for stem, suffix in parts if suffix.lower() in (".jpg", ".jpeg")}
    return [
        TWIN if suffix.lower() in RAW.suffixes and stem in jpegs else kinds.get(suffix.lower(), OTHER)
        for stem, suffix in parts
    ]


def name_left_out(left_out: Mapping[str, int]) -> str:
    """What was left out and why, as in "5 HEIC left out (need `pip install pillow-heif`); 2 other files left out".

    Args:
        left_out: Files by kind, as a source counts them in `left_out`; "" if there are none.
    """
    remedies = {kind.name: kind.remedy for kind in OPTIONAL}
    words: list[str] = []
    for kind, count in sorted(left_out.items(), key=lambda entry: (entry[0] == OTHER, entry[0])):
        if kind in remedies:
            words.append(f"{count:,} {kind} left out (need{'s' * (count == 1)} {remedies[kind]()})")
        elif kind == OTHER:
            words.append(f"{count:,} other file{'s' * (count > 1)} left out")
        else:
            words.append(f"{count:,} {kind} left out")
    return "; ".join(words)


def no_images(place: str, names: Iterable[str], hint: str = "") -> DataError:
    """The error for a place without images: what was looked for, what is there instead, and the remedy.

    Args:
        place: Where nothing was found.
        names: All files there.
        hint: What to do where no package would help.
    """
    names = sorted(names)
    if unread := name_left_out(Counter(kind for kind in kinds_of(names) if kind in {known.name for known in OPTIONAL})):
        return DataError(f"No images in {place} that can be read here: {unread}.")
    counts = Counter(os.path.splitext(name)[1].lower() or "(no extension)" for name in names)
    there = ", ".join(f"{count} {suffix} file{'s' * (count > 1)}" for suffix, count in counts.most_common(4))
    looked_for = " ".join(sorted(readable_suffixes()))
    return DataError(f"No images in {place}: looked for {looked_for} and found {there or 'no files at all'}{hint}.")


def format_of(raw: bytes) -> Format | None:
    """Which optional kind an encoded image is of, by its first bytes; None for all that Pillow always reads."""
    head = raw[:32]
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand == b"crx ":
            return RAW
        if brand in (b"avif", b"avis") or (brand == b"mif1" and b"avif" in head[16:]):
            return AVIF
        return HEIC if brand[:2] in (b"he", b"mi", b"ms") else None
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return kind
    if head[:4] in (b"II*\0", b"MM\0*") and (head[8:10] == b"CR" or _is_camera_tiff(raw)):
        return RAW
    return None


_STARTS = {
    b"\xff\x0a": JPEG_XL,
    b"\0\0\0\x0cJXL ": JPEG_XL,
    b"\0\0\0\x0cjP  ": JPEG_2000,
    b"\xff\x4f\xff\x51": JPEG_2000,
    b"FUJIFILMCCD-RAW": RAW,
    b"IIU\0": RAW,  # Panasonic
    b"IIRO": RAW,  # Olympus
    b"IIRS": RAW,
    b"MMOR": RAW,
}


def _is_camera_tiff(raw: bytes) -> bool:
    """True for raw photos whose container is TIFF: Pillow opens these too, but shows their thumbnail."""
    file = io.BytesIO(raw)
    try:
        tags = ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        maker, thumbnail_first, more_inside = 271 in tags, tags.get(254) == 1, 330 in tags
        of_sensor = tags.get(262) in (32803, 34892)  # colour filter array, linear raw
        return 50706 in tags or of_sensor or (maker and thumbnail_first and more_inside)  # 50706: DNG's version
    except Exception:  # whatever a damaged header makes Pillow raise; decoding will say what is wrong
        return False
