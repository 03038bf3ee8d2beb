"""Bytes to an upright RGB image, for all that turns up in real folders; DecodeError for what is not an image."""

import contextlib
import importlib
import io
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from dinov2_zoo.data.formats import RAW, format_of
from dinov2_zoo.errors import DataError

# Pixels: PIL's own limit for a warning is half of this number, its limit for an error is this one.
MAX_PIXELS = 178_956_970

_LOADING = threading.Lock()


class DecodeError(DataError):
    """One image cannot be decoded; training goes on with another one."""


def decode(
    raw: bytes | Image.Image, *, max_pixels: int = MAX_PIXELS, scale: Callable[[int, int], int] | None = None
) -> Image.Image:
    """Decode one image to RGB as a person would see it.

    Turns it upright by its EXIF orientation; of an animation takes the first frame; lays transparency over white;
    scales 16-bit grey to 8 bits instead of clipping it; understands palettes and CMYK. HEIC, JPEG XL and raw photos are
    read where their package is installed; raw ones at half their side, with the camera's white balance.

    Args:
        raw: An encoded image, or one that the source has already opened.
        max_pixels: Largest width * height to accept: a small file can claim to be gigabytes of pixels.
        scale: Given width and height as stored, says how many times smaller the image may come out: 1, 2, 4 or 8. JPEGs
            do, at a third or less of the time, for fewer of their frequencies are turned into pixels; others do not.

    Raises:
        DecodeError: No bytes, not an image, damaged or cut off, larger than `max_pixels`, or of a kind that takes a
            package which is not installed.
    """
    if isinstance(raw, bytes) and not raw:
        raise DecodeError("The file is empty (0 bytes): remove it, or fetch it again.")
    try:
        image = _open(raw, max_pixels) if isinstance(raw, bytes) else raw
        _check_size(*image.size, max_pixels)
        # PIL decodes when asked for pixels, and two threads may ask for those of one image that was given twice.
        with _LOADING if image is raw else contextlib.nullcontext():
            if scale is not None and image is not raw and image.format in ("JPEG", "MPO"):
                _shrink(image, scale(*image.size))
            image.load()
        return _rgb(_upright(image))
    except DecodeError:
        raise
    # PIL's format plugins raise OSError, SyntaxError, ValueError, struct.error, IndexError, ZeroDivisionError and more
    # on damaged files; whatever it is, the remedy is the same, and one bad file must not end a run.
    except Exception as error:
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise DecodeError(f"The image cannot be decoded ({reason}): remove it, or fetch it again.") from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DecodeError(
            f"The image has {width} x {height} = {width * height:,} pixels, more than {max_pixels:,}: "
            "make it smaller, or remove it."
        )


def _open(raw: bytes, max_pixels: int) -> Image.Image:
    """Read the header. PIL's own size limit, a process-wide setting, may be lower than ours or switched off."""
    if (kind := format_of(raw)) is not None:
        try:
            kind.enable()
        except ImportError as error:
            raise DecodeError(f"The file is {kind.name}, which is not read here: run {kind.remedy()}.") from error
        if kind is RAW:
            return _develop(raw, max_pixels)
    try:
        return Image.open(io.BytesIO(raw))
    except Image.DecompressionBombError as error:
        raise DecodeError(
            f"The image is too large ({str(error).rstrip('.')}): make it smaller, or remove it."
        ) from error
    except Image.UnidentifiedImageError as error:
        raise DecodeError(
            f"The file is not an image of a known format (it starts with {raw[:12]!r}): remove it."
        ) from error


def _shrink(image: Image.Image, scale: int) -> None:
    """Let a JPEG be decoded so many times smaller, rounded up to whole pixels."""
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))


def _develop(raw: bytes, max_pixels: int) -> Image.Image:
    """A camera's raw photo in colours, upright. Half the side: a quarter of the time, and more than models look at."""
    rawpy: Any = importlib.import_module(str(RAW.module))
    with rawpy.imread(io.BytesIO(raw)) as photo:
        _check_size(photo.sizes.width, photo.sizes.height, max_pixels)
        return Image.fromarray(photo.postprocess(use_camera_wb=True, half_size=True))


def _upright(image: Image.Image) -> Image.Image:
    """Turn or mirror an image as its EXIF orientation says."""
    try:
        return ImageOps.exif_transpose(image)
    # Metadata are damaged far more often than pixels, and PIL's parser raises whatever it stumbles over.
    except Exception:
        return image


def _rgb(image: Image.Image) -> Image.Image:
    """Any of PIL's modes to RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _grey(np.asarray(image), image.mode)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        # Transparency over white, as pages show it: the colours below it are arbitrary, often black.
        layered = image.convert("RGBA")
        paper = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(paper, layered).convert("RGB")
    return image.convert("RGB")


def _grey(values: np.ndarray, mode: str) -> Image.Image:
    """16-bit grey, 32-bit integers that hold 8 or 16 bits, or floats, to RGB. PIL's own conversion clips at 255."""
    numbers = values.astype(np.float64)
    if mode == "F":
        # A float picture has no agreed range: 0..1 and 0..255 are both common.
        numbers = np.nan_to_num(numbers, nan=0.0, posinf=255.0, neginf=0.0)
        numbers = numbers * 255 if numbers.max(initial=0) <= 1 else numbers
    elif mode != "I" or numbers.max(initial=0) > 255:
        numbers = numbers / 257  # 65535 -> 255
    return Image.fromarray(np.clip(np.round(numbers), 0, 255).astype(np.uint8)).convert("RGB")
