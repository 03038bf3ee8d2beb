"""Cuttings of a photo, and a teacher that looks at them in no time."""

import torch
from PIL import Image
from skimage import data as photos

from dinov2_zoo import Dinov2Model
from dinov2_zoo.config import ModelConfig


def images_and_teacher(folder):
    """Write twelve images into `images`, and a model of 3 blocks and 48 channels into `teacher`."""
    (folder / "images").mkdir()
    photo = Image.fromarray(photos.astronaut())
    for i in range(12):
        photo.crop((30 * i, 60, 30 * i + 62, 130)).save(folder / f"images/{i}.png")
    torch.manual_seed(0)
    Dinov2Model(ModelConfig(48, 3, 3, img_size=56, layer_scale=1.0)).save_pretrained(folder / "teacher")
