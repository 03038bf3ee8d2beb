"""Pictures that are in memory already: PIL's, arrays of numpy, tensors of torch, encoded bytes."""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dinov2_zoo.errors import DataError

Picture = Image.Image | bytes | np.ndarray | Tensor
"""One picture, or for arrays and tensors with four dimensions a batch of them."""


class Pictures:
    """Pictures in memory.

    Args:
        pictures: See `split_picture` for what they may be, one each.
        first: Number of the first one among all that were given, for names.
    """

    labels: list[int] | None = None
    classes: list[str] | None = None

    def __init__(self, pictures: list[Picture], first: int = 0) -> None:
        self._pictures = pictures
        self._first = first

    def __len__(self) -> int:
        return len(self._pictures)

    def read(self, index: int) -> bytes | Image.Image:
        """The picture, with 8 bits a channel where it was an array or a tensor.

        Raises:
            DataError: Its numbers are outside 0..1.
        """
        picture = self._pictures[index]
        if isinstance(picture, Tensor):
            picture = picture.detach().cpu()
            # numpy knows no bfloat16, and has the channels last.
            picture = (picture.float() if picture.is_floating_point() else picture).movedim(-3, -1).numpy()
        return _as_image(picture, self.name(index)) if isinstance(picture, np.ndarray) else picture

    def name(self, index: int) -> str:
        """Its number, as in "image 3"."""
        return f"image {self._first + index}"


def split_picture(picture: Picture) -> Iterator[Picture]:
    """The pictures of an array or tensor, its shape and kind of numbers checked; one of PIL's as it is.

    Args:
        picture: numpy [H, W], [H, W, 1 | 3 | 4] or a batch [B, H, W, 1 | 3 | 4]; torch [H, W], [1 | 3 | 4, H, W] or a
            batch [B, 1 | 3 | 4, H, W]; uint8 of 0..255, bool, or floats of 0..1.

    Raises:
        DataError: It has another shape or kind of numbers.
    """
    if isinstance(picture, Image.Image | bytes):
        yield picture
        return
    shape = tuple(picture.shape)
    tensor = isinstance(picture, Tensor)
    known = (torch.uint8, torch.bool) if tensor else (np.uint8, np.bool_)
    floats = picture.is_floating_point() if tensor else np.issubdtype(picture.dtype, np.floating)
    if not floats and picture.dtype not in known:
        raise DataError(f"Pictures of {picture.dtype} have no agreed range: give uint8 of 0..255, or floats of 0..1.")
    channels = (shape[-3] if tensor else shape[-1]) if len(shape) > 2 else 1
    if len(shape) not in (2, 3, 4) or channels not in (1, 3, 4) or 0 in shape[-3:]:
        wanted = "[3, H, W] or [B, 3, H, W]" if tensor else "[H, W, 3], [B, H, W, 3] or [H, W]"
        hint = "" if tensor or shape[-3:-2] not in ((1,), (3,)) else " (channels come last in numpy: move them there)"
        raise DataError(
            f"{'A tensor' if tensor else 'An array'} of shape {list(shape)} is no picture: give {wanted}{hint}."
        )
    if len(shape) == 2:
        yield picture[None] if tensor else picture[..., None]
    elif len(shape) == 3:
        yield picture
    else:
        yield from picture


def _as_image(pixels: np.ndarray, name: str) -> Image.Image:
    """An array [H, W, 1 | 3 | 4] as one of PIL's images."""
    if pixels.dtype != np.uint8:
        numbers = pixels.astype(np.float32)
        # A resized picture overshoots by a little; a normalised one by a lot.
        if not (numbers.min() >= -0.05 and numbers.max() <= 1.05):
            raise DataError(
                f"{name} has numbers from {numbers.min():.3g} to {numbers.max():.3g}, but floats are of 0..1: give "
                "uint8 for 0..255, and call the model itself with what is normalised already."
            )
        pixels = np.round(numbers.clip(0, 1) * 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
