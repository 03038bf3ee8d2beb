"""Time to augment one image: this package's hue shift and blur against torchvision's, all else equal.

Run  python benchmarks/augmentation.py [--rounds 9]
Two global crops of 224 pixels and eight local ones of 98, from a 512 x 512 photo of scikit-image, one thread.
"""

import argparse
from unittest import mock

import torch
import torchvision.transforms.v2.functional as tv
from paired import Spread, paired_seconds, ratio
from PIL import Image
from skimage import data

from dinov2_zoo.config import CropConfig
from dinov2_zoo.data import augment
from dinov2_zoo.data.crops import multi_crop

IMAGES = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    photo = Image.fromarray(data.astronaut())

    def ours() -> None:
        for sample in range(IMAGES):
            multi_crop(photo, CropConfig(), seed=0, epoch=0, sample_id=sample)

    def torchvisions() -> None:
        blur = mock.patch.object(
            augment, "gaussian_blur", lambda pixels, sigma: tv.gaussian_blur(pixels, [9, 9], [sigma, sigma])
        )
        with blur, mock.patch.dict(augment._COLOUR, {"hue": tv.adjust_hue}):
            ours()

    pairs = paired_seconds(ours, torchvisions, rounds)
    each = [Spread.of([1000 * pair[side] / IMAGES for pair in pairs]) for side in (0, 1)]
    print(f"ms an image            {each[0]} ours, {each[1]} torchvision's")
    print(f"torchvision over ours  {ratio(pairs)}")


if __name__ == "__main__":
    main()
