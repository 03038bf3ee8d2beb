"""Multi-crop: two global and several local crops of one image, each cut and coloured on its own."""

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dinov2_zoo.config import CropConfig
from dinov2_zoo.data.augment import apply_view, draw_view, generator
from dinov2_zoo.data.preprocess import normalise, to_uint8


def multi_crop(
    image: Image.Image, config: CropConfig, *, seed: int, epoch: int, sample_id: int
) -> tuple[Float[Tensor, "2 3 G G"], Float[Tensor, "L 3 l l"]]:
    """Cut the crops of one image, normalised.

    The crops depend on the image, `config` and the three numbers, and on nothing else: no global state, no other image,
    and no other crop, so that the first crops stay the same when `local_count` changes.

    Args:
        image: RGB.
        config: Sizes, ranges and probabilities.
        seed: Of the run.
        epoch: Passes over the data so far; each pass sees other crops.
        sample_id: Index of the image in its source.

    Returns:
        (global crops, local crops); L may be 0.
    """
    pixels = to_uint8(image)

    def crops(first: int, count: int, size: int) -> Tensor:
        out = torch.empty(count, 3, size, size, dtype=torch.uint8)
        for i in range(count):
            numbers = generator("crop", seed, epoch, sample_id, first + i)
            out[i] = apply_view(pixels, draw_view(image.width, image.height, first + i, config, numbers))
        return normalise(out)

    return crops(0, 2, config.global_size), crops(2, config.local_count, config.local_size)
