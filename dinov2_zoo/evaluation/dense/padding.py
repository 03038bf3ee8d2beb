"""Images of any size for a model that wants multiples of its patch: zeros around them (official)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def pad(images: Float[Tensor, "B 3 H W"], patch: int) -> Float[Tensor, "B 3 H2 W2"]:
    """Images in the middle of the next larger size whose sides are multiples of the patch."""
    below, right = (-side % patch for side in images.shape[2:])
    top, left = below // 2, right // 2
    return F.pad(images, (left, right - left, top, below - top))


def unpad(maps: Float[Tensor, "B C H2 W2"], height: int, width: int) -> Float[Tensor, "B C {height} {width}"]:
    """The opposite, for what was made of them at the same resolution.

    Args:
        maps: Of the padded images.
        height: Of the images, pixels.
        width: Of the images, pixels.
    """
    top, left = (maps.shape[2] - height) // 2, (maps.shape[3] - width) // 2
    return maps[:, :, top : top + height, left : left + width]
